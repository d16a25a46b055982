package converter_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	builder "github.com/containerd/stargz-snapshotter/estargz"
	zstdbuilder "github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/estargz"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/indextest"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/zstdchunked"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

var testID = sha256.Sum256([]byte("lazy"))

// lazyLayer is the blob of a layer that has an index.
type lazyLayer struct {
	layer   index.Layer
	blob    []byte
	seconds bool // the index knows times to the second
}

// format is a way to make such a layer of an archive.
type format struct {
	name string
	pack func(t testing.TB, archive []byte) lazyLayer
}

var formats = []format{
	{"eStargz", func(t testing.TB, a []byte) lazyLayer { return packEStargz(t, a) }},
	{"eStargz in small chunks", func(t testing.TB, a []byte) lazyLayer {
		return packEStargz(t, a, builder.WithChunkSize(5000), builder.WithMinChunkSize(30000))
	}},
	{"stargz", func(t testing.TB, a []byte) lazyLayer { return packStargz(t, a, builder.WithChunkSize(70000)) }},
	{"podman", func(t testing.TB, a []byte) lazyLayer { return packPodman(t, a, 1<<30) }},
	{"podman in small chunks", func(t testing.TB, a []byte) lazyLayer { return packPodman(t, a, 4096) }},
}

func packEStargz(t testing.TB, archive []byte, options ...builder.Option) lazyLayer {
	t.Helper()
	return build(t, archive, map[string]string{}, append(options, builder.WithCompressionLevel(gzip.BestSpeed)))
}

// zstdCompression is what the builder of eStargz needs to make zstd:chunked.
type zstdCompression struct {
	*zstdbuilder.Decompressor
	*zstdbuilder.Compressor
}

func packStargz(t testing.TB, archive []byte, options ...builder.Option) lazyLayer {
	t.Helper()
	annotations := make(map[string]string)
	c := zstdCompression{&zstdbuilder.Decompressor{}, &zstdbuilder.Compressor{CompressionLevel: zstd.SpeedFastest, Metadata: annotations}}
	return build(t, archive, annotations, append(options, builder.WithCompression(c)))
}

func build(t testing.TB, archive []byte, annotations map[string]string, options []builder.Option) lazyLayer {
	t.Helper()
	b, err := builder.Build(io.NewSectionReader(bytes.NewReader(archive), 0, int64(len(archive))), options...)
	must(t, err)
	defer b.Close()
	blob, err := io.ReadAll(b)
	must(t, err)
	annotations[builder.TOCJSONDigestAnnotation] = b.TOCDigest().String()
	return lazyLayer{layer: index.Layer{Annotations: annotations, Size: int64(len(blob))}, blob: blob, seconds: true}
}

func packPodman(t testing.TB, archive []byte, chunkBytes int) lazyLayer {
	t.Helper()
	l, blob := indextest.PodmanLayer(t, archive, chunkBytes)
	return lazyLayer{layer: l, blob: blob}
}

// open opens the index of a layer, whatever its format.
func (l lazyLayer) open(t testing.TB) *index.Index {
	t.Helper()
	idx, err := estargz.Open(l.layer, bytes.NewReader(l.blob), index.Limits{})
	if err != nil {
		idx, err = zstdchunked.Open(l.layer, bytes.NewReader(l.blob), index.Limits{})
	}
	must(t, err)
	return idx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// files are the two files of an instance.
type files struct{ meta, data *os.File }

func newFiles(t testing.TB) files {
	t.Helper()
	dir := t.TempDir()
	create := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		must(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	return files{create("meta.erofs"), create("data")}
}

// lazily makes an instance from the index of a layer, and fills its data blob from the extents.
func (l lazyLayer) lazily(t testing.TB) (files, converter.Lazy) {
	t.Helper()
	f, idx := newFiles(t), l.open(t)
	made, err := converter.FromIndex(t.Context(), idx, f.meta, testID, converter.Limits{})
	must(t, err)
	must(t, checkPlan(made))
	must(t, f.data.Truncate(made.DataBytes))
	var d index.Decoder
	var opened index.Range
	for i, x := range made.Extents {
		if x.Blob != opened {
			must(t, d.Open(idx.Codec, x.Blob, l.blob[x.Blob.Start:x.Blob.End], nil))
			opened = x.Blob
		}
		b := make([]byte, x.Length)
		if err := d.Decode(x.Extent, b); err != nil {
			t.Fatalf("extent %d: %v", i, err)
		}
		_, err := f.data.WriteAt(b, x.At)
		must(t, err)
	}
	return f, made
}

// checkPlan checks what whoever keeps a data blob relies on.
func checkPlan(l converter.Lazy) error {
	if l.DataBytes < 4096 || l.DataBytes%4096 != 0 || l.MetaBytes%4096 != 0 {
		return fmt.Errorf("meta image of %d bytes, data blob of %d", l.MetaBytes, l.DataBytes)
	}
	var end int64
	for i, x := range l.Extents {
		if x.At < end || x.Hole || x.Length <= 0 || x.At > l.DataBytes-x.Length {
			return fmt.Errorf("extent %d: %+v, the one before ends at %d, the data blob at %d", i, x, end, l.DataBytes)
		}
		end = x.At + x.Length
	}
	return nil
}

// eagerly makes an instance from the tar of a layer.
func (l lazyLayer) eagerly(t testing.TB) files {
	t.Helper()
	f := newFiles(t)
	_, err := converter.FromTar(context.Background(), bytes.NewReader(l.blob), converter.Target{ID: testID, Meta: f.meta, Data: f.data}, converter.Limits{})
	must(t, err)
	return f
}

// oddArchive is an archive of entries that are easy to get wrong and that an index can express.
func oddArchive() []byte {
	dir := func(name string, xattrs ...tartest.Xattr) tartest.File {
		return tartest.File{Name: name, Type: '5', Mode: 0o750, UID: 3, Sec: 1_600_000_000, Xattrs: xattrs}
	}
	file := func(name string) tartest.File {
		return tartest.File{Name: name, Type: '0', Mode: 0o640, GID: 4, Sec: 1_600_000_001, Data: []byte(name)}
	}
	large := tartest.File{Name: "large", Type: '0', Mode: 0o600, Data: bytes.Join([][]byte{
		tartest.Pattern(300000, 1), make([]byte, 200000), tartest.Pattern(150001, 2), make([]byte, 5000),
	}, nil)}
	return indextest.Archive(slices.Concat([]tartest.File{
		large,
		file(".wh.gone"), file("own"), file(".wh.own"), dir("replaced/"), file("replaced/child"), file(".wh.replaced"),
		dir("opaque/"), file("opaque/.wh..wh..opq"), file("opaque/child"), file("opaque/.wh.nothing"), file("implied/by/.wh.gone"),
		file(".wh..wh.aufs"), dir(".wh..wh.plnk/"), file(".wh..wh.orph/1.2"),
		dir("marked/", tartest.Xattr{Name: "trusted.overlay.opaque", Value: "y"}, tartest.Xattr{Name: "user.kept", Value: "v"}),
		{Name: "device", Type: '3', Mode: 0o600},
		{Name: "link", Linkname: "replaced", Type: '2', Mode: 0o777}, file("link/through-a-link"),
	}, tartest.LargeXattrs()[:1])...)
}
