package toc

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tarstream"
)

// entry is an element of the entries of a table of contents: a file, or one more chunk of the file before.
type entry struct {
	Name      string            `json:"name"`
	Type      string            `json:"type"`
	Size      int64             `json:"size"`
	ModTime   string            `json:"modtime"`
	LinkName  string            `json:"linkName"`
	Mode      int64             `json:"mode"`
	UID       int64             `json:"uid"`
	GID       int64             `json:"gid"`
	DevMajor  int64             `json:"devMajor"`
	DevMinor  int64             `json:"devMinor"`
	Xattrs    map[string][]byte `json:"xattrs"`
	Digest    string            `json:"digest"`
	Offset    int64             `json:"offset"`
	EndOffset int64             `json:"endOffset"` // podman's dialect only

	InnerOffset int64  `json:"innerOffset"` // stargz's dialect only
	ChunkOffset int64  `json:"chunkOffset"`
	ChunkSize   int64  `json:"chunkSize"`
	ChunkDigest string `json:"chunkDigest"`
	ChunkType   string `json:"chunkType"` // podman's dialect only
}

const typeChunk = "chunk"

var types = map[string]tarstream.Type{
	"reg": tarstream.Regular, "hardlink": tarstream.HardLink, "symlink": tarstream.Symlink, "char": tarstream.CharDevice,
	"block": tarstream.BlockDevice, "dir": tarstream.Directory, "fifo": tarstream.FIFO,
}

// What Linux can express.
const (
	maxPathBytes       = 4096
	maxID              = math.MaxUint32 - 1
	maxMajor           = 1<<12 - 1
	maxMinor           = 1<<20 - 1
	maxXattrNameBytes  = 255
	maxXattrValueBytes = 64 << 10
)

// header returns the entry's attributes as those of a tar entry.
func (e *entry) header(l index.Limits) (h tarstream.Header, err error) {
	h.Offset = -1
	var ok bool
	if h.Type, ok = types[e.Type]; !ok {
		return h, fmt.Errorf("unknown type %s", quote(e.Type))
	}
	if h.Name, err = cleanPath(e.Name); err != nil {
		return h, err
	}
	if h.Linkname, err = e.target(h.Type); err != nil {
		return h, err
	}
	if h.Type == tarstream.Regular {
		if e.Size < 0 || e.Size > l.FileBytes {
			return h, fmt.Errorf("%w: size %d is not in 0 to %d", index.ErrLimit, e.Size, l.FileBytes)
		}
		h.Size = e.Size
	}
	h.Mode = uint32(e.Mode & 07777)
	if h.ModTime, err = parseTime(e.ModTime); err != nil {
		return h, err
	}
	if err := e.setNumbers(&h); err != nil {
		return h, err
	}
	h.Xattrs, err = e.xattrs()
	return h, err
}

func (e *entry) target(t tarstream.Type) (string, error) {
	var target string
	var err error
	switch t {
	case tarstream.HardLink:
		target, err = cleanPath(e.LinkName)
	case tarstream.Symlink:
		target, err = e.LinkName, checkString(e.LinkName, maxPathBytes-1)
	}
	if err != nil {
		return "", fmt.Errorf("link target: %w", err)
	}
	return target, nil
}

func (e *entry) setNumbers(h *tarstream.Header) error {
	device := h.Type == tarstream.CharDevice || h.Type == tarstream.BlockDevice
	for _, n := range []struct {
		name       string
		value, max int64
		to         *uint32
		use        bool
	}{
		{"uid", e.UID, maxID, &h.UID, true},
		{"gid", e.GID, maxID, &h.GID, true},
		{"device major", e.DevMajor, maxMajor, &h.Devmajor, device},
		{"device minor", e.DevMinor, maxMinor, &h.Devminor, device},
	} {
		if !n.use {
			continue
		}
		if n.value < 0 || n.value > n.max {
			return fmt.Errorf("%s %d is not in 0 to %d", n.name, n.value, n.max)
		}
		*n.to = uint32(n.value)
	}
	return nil
}

func (e *entry) xattrs() ([]tarstream.Xattr, error) {
	if len(e.Xattrs) == 0 {
		return nil, nil
	}
	list := make([]tarstream.Xattr, 0, len(e.Xattrs))
	for name, value := range e.Xattrs {
		if err := checkString(name, maxXattrNameBytes); err != nil {
			return nil, fmt.Errorf("extended attribute %s: %w", quote(name), err)
		}
		if len(value) > maxXattrValueBytes {
			return nil, fmt.Errorf("extended attribute %s: %w: value of %d bytes, Linux allows %d", quote(name), index.ErrLimit, len(value), maxXattrValueBytes)
		}
		list = append(list, tarstream.Xattr{Name: name, Value: value})
	}
	slices.SortFunc(list, func(a, b tarstream.Xattr) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// parseTime parses a time as RFC 3339 has it. No time is 1970, which writers leave out.
func parseTime(s string) (tarstream.Time, error) {
	if s == "" {
		return tarstream.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return tarstream.Time{}, fmt.Errorf("modification time %s is not in the form of RFC 3339", quote(s))
	}
	return tarstream.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}, nil
}

// parseDigest returns the bytes of a SHA-256 digest. No digest means that the data cannot be verified.
func parseDigest(s string) (sum [32]byte, err error) {
	if s == "" {
		return sum, fmt.Errorf("%w: no digest of the data", index.ErrNotLazy)
	}
	text, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(text) != hex.EncodedLen(len(sum)) {
		return sum, fmt.Errorf("%s is not a SHA-256 digest", quote(s))
	}
	if _, err := hex.Decode(sum[:], []byte(text)); err != nil {
		return sum, fmt.Errorf("%s is not a SHA-256 digest: %w", quote(s), err)
	}
	return sum, nil
}

// cleanPath makes a path relative to the root of the layer and drops its empty and "." components, as is done with the names in a tar.
func cleanPath(path string) (string, error) {
	if err := checkString(path, maxPathBytes); err != nil {
		return "", err
	}
	parts := slices.DeleteFunc(strings.Split(path, "/"), func(p string) bool { return p == "" || p == "." })
	if slices.Contains(parts, "..") {
		return "", errors.New(`".." in a path could lead out of the layer`)
	}
	return strings.Join(parts, "/"), nil
}

func checkString(s string, most int) error {
	switch {
	case len(s) > most:
		return fmt.Errorf("%w: %d bytes, Linux allows %d", index.ErrLimit, len(s), most)
	case strings.IndexByte(s, 0) >= 0:
		return fmt.Errorf("NUL in %s", quote(s))
	case strings.ContainsRune(s, '\uFFFD'):
		return fmt.Errorf("%w: %s has lost a byte that was not UTF-8", index.ErrNotLazy, quote(s))
	}
	return nil
}

// quote quotes a string of the input, of which a message shows the beginning.
func quote(s string) string {
	const most = 256
	if len(s) <= most {
		return fmt.Sprintf("%q", s)
	}
	return fmt.Sprintf("%q...", s[:most])
}
