package indextest

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
)

// podmanEntry is an entry of a table of contents as containers/storage writes it (pkg/chunked/internal/minimal, FileMetadata).
type podmanEntry struct {
	Type        string            `json:"type"`
	Name        string            `json:"name"`
	Linkname    string            `json:"linkName,omitempty"`
	Mode        int64             `json:"mode,omitempty"`
	Size        int64             `json:"size,omitempty"`
	UID         int               `json:"uid,omitempty"`
	GID         int               `json:"gid,omitempty"`
	ModTime     *time.Time        `json:"modtime,omitempty"`
	AccessTime  *time.Time        `json:"accesstime,omitempty"`
	Devmajor    int64             `json:"devMajor,omitempty"`
	Devminor    int64             `json:"devMinor,omitempty"`
	Xattrs      map[string]string `json:"xattrs,omitempty"`
	Digest      string            `json:"digest,omitempty"`
	Offset      int64             `json:"offset,omitempty"`
	EndOffset   int64             `json:"endOffset,omitempty"`
	ChunkSize   int64             `json:"chunkSize,omitempty"`
	ChunkOffset int64             `json:"chunkOffset,omitempty"`
	ChunkDigest string            `json:"chunkDigest,omitempty"`
	ChunkType   string            `json:"chunkType,omitempty"`
}

// podmanBuilder makes a blob as containers/storage does, except for the rule by which it splits files, and something in the place of the
// tar-split.
type podmanBuilder struct {
	t       testing.TB
	blob    bytes.Buffer
	frame   *zstd.Encoder
	entries []podmanEntry
}

var podmanTypes = map[byte]string{
	tar.TypeReg: "reg", tar.TypeLink: "hardlink", tar.TypeSymlink: "symlink", tar.TypeChar: "char", tar.TypeBlock: "block",
	tar.TypeDir: "dir", tar.TypeFifo: "fifo",
}

// PodmanLayer packs an archive as zstd:chunked in podman's dialect. Files are split every chunkBytes, and chunks of zeros are marked.
func PodmanLayer(t testing.TB, archive []byte, chunkBytes int) (index.Layer, []byte) {
	t.Helper()
	b := &podmanBuilder{t: t}
	var err error
	if b.frame, err = zstd.NewWriter(&b.blob, zstd.WithEncoderConcurrency(1)); err != nil {
		t.Fatal(err)
	}
	in := bytes.NewReader(archive)
	r := tar.NewReader(in)
	for written := 0; ; {
		h, err := r.Next()
		if err == io.EOF {
			_, err = b.frame.Write(archive[written:])
			b.must(err)
			break
		}
		b.must(err)
		at := len(archive) - in.Len()
		_, err = b.frame.Write(archive[written:at])
		b.must(err)
		written = at
		if h.Typeflag == tar.TypeReg {
			written += int(h.Size)
		}
		b.add(h, archive[at:written], chunkBytes)
	}
	b.restart()
	return b.finish()
}

func (b *podmanBuilder) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// restart ends a zstd frame and returns where the next one begins.
func (b *podmanBuilder) restart() int64 {
	b.must(b.frame.Close())
	b.frame.Reset(&b.blob)
	return int64(b.blob.Len())
}

func (b *podmanBuilder) add(h *tar.Header, data []byte, chunkBytes int) {
	e := podmanEntry{
		Type: podmanTypes[h.Typeflag], Name: h.Name, Linkname: h.Linkname, Mode: h.Mode, Size: h.Size, UID: h.Uid, GID: h.Gid,
		ModTime: &h.ModTime, AccessTime: &h.ModTime, Devmajor: h.Devmajor, Devminor: h.Devminor, Xattrs: map[string]string{},
	}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			e.Xattrs[name] = base64.StdEncoding.EncodeToString([]byte(value))
		}
	}
	if len(data) == 0 {
		b.entries = append(b.entries, e)
		return
	}
	chunks := b.write(h.Name, data, chunkBytes)
	e.Offset, e.EndOffset, e.Digest = chunks[0].Offset, int64(b.blob.Len()), digest.FromBytes(data).String()
	if len(chunks) > 1 {
		e.ChunkSize, e.ChunkDigest, e.ChunkType = chunks[0].ChunkSize, chunks[0].ChunkDigest, chunks[0].ChunkType
	}
	b.entries = append(append(b.entries, e), chunks[1:]...)
}

// write writes the chunks of a file, a frame for each.
func (b *podmanBuilder) write(name string, data []byte, chunkBytes int) []podmanEntry {
	var chunks []podmanEntry
	start := b.restart()
	for at := 0; at < len(data); at += chunkBytes {
		chunk := data[at:min(at+chunkBytes, len(data))]
		_, err := b.frame.Write(chunk)
		b.must(err)
		c := podmanEntry{
			Type: "chunk", Name: name, Offset: start, ChunkOffset: int64(at), ChunkSize: int64(len(chunk)), ChunkDigest: digest.FromBytes(chunk).String(),
		}
		if len(bytes.Trim(chunk, "\x00")) == 0 {
			c.ChunkType = "zeros"
		}
		chunks = append(chunks, c)
		start = b.restart()
	}
	return chunks
}

// finish appends the table of contents, something in the place of the tar-split, and the footer.
func (b *podmanBuilder) finish() (index.Layer, []byte) {
	text, err := json.Marshal(struct {
		Version        int           `json:"version"`
		Entries        []podmanEntry `json:"entries"`
		TarSplitDigest digest.Digest `json:"tarSplitDigest,omitempty"`
	}{1, b.entries, digest.FromString("tar-split")})
	b.must(err)
	return WithTOC(b.blob.Bytes(), text, "io.github.containers.zstd-chunked.manifest-")
}

// WithTOC appends a table of contents to the data of a blob, and returns the layer with its annotations.
func WithTOC(data, text []byte, annotation string) (index.Layer, []byte) {
	packed := compress(text)
	blob := appendFrame(bytes.Clone(data), packed)
	blob = appendFrame(blob, []byte("tar-split"))
	blob = appendFrame(blob, make([]byte, 64))
	return index.Layer{Size: int64(len(blob)), Annotations: map[string]string{
		annotation + "checksum": digest.FromBytes(packed).String(),
		annotation + "position": fmt.Sprintf("%d:%d:%d:1", len(data)+8, len(packed), len(text)),
	}}, blob
}

func compress(p []byte) []byte {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	return w.EncodeAll(p, nil)
}

// appendFrame appends a skippable frame.
func appendFrame(blob, payload []byte) []byte {
	blob = append(blob, 0x50, 0x2a, 0x4d, 0x18)
	blob = binary.LittleEndian.AppendUint32(blob, uint32(len(payload)))
	return append(blob, payload...)
}
