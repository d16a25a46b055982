package zstdchunked_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	builder "github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/indextest"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/zstdchunked"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
)

// compression is what the builder of eStargz needs to make zstd:chunked.
type compression struct {
	*builder.Decompressor
	*builder.Compressor
}

// stargzLayer is a layer in stargz's dialect made by the library that everybody makes them with.
func stargzLayer(t testing.TB, archive []byte, options ...estargz.Option) (index.Layer, []byte) {
	t.Helper()
	annotations := make(map[string]string)
	c := compression{&builder.Decompressor{}, &builder.Compressor{CompressionLevel: zstd.SpeedFastest, Metadata: annotations}}
	b, err := estargz.Build(io.NewSectionReader(bytes.NewReader(archive), 0, int64(len(archive))), append(options, estargz.WithCompression(c))...)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	blob, err := io.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	annotations[estargz.TOCJSONDigestAnnotation] = b.TOCDigest().String()
	return index.Layer{Annotations: annotations, Size: int64(len(blob))}, blob
}

func largeFile() tartest.File {
	data := bytes.Join([][]byte{tartest.Pattern(300000, 1), make([]byte, 200000), tartest.Pattern(1<<20, 2)}, nil)
	return tartest.File{Name: "large", Type: '0', Mode: 0o600, Data: data}
}

func TestRecordsOfStargz(t *testing.T) {
	archive := indextest.Archive(largeFile())
	for name, options := range map[string][]estargz.Option{
		"default":         nil,
		"chunks of 65536": {estargz.WithChunkSize(65536)},
		"frames of 50000": {estargz.WithMinChunkSize(50000), estargz.WithChunkSize(20000)},
	} {
		t.Run(name, func(t *testing.T) {
			l, blob := stargzLayer(t, archive, options...)
			check(t, l, blob, archive, 1e9)
		})
	}
}

func TestRecordsOfPodman(t *testing.T) {
	archive := indextest.Archive(largeFile())
	for _, chunkBytes := range []int{4096, 65536, 1 << 30} {
		t.Run(fmt.Sprint(chunkBytes), func(t *testing.T) {
			l, blob := indextest.PodmanLayer(t, archive, chunkBytes)
			check(t, l, blob, archive, 1)
		})
	}
}

func check(t *testing.T, l index.Layer, blob, archive []byte, timeUnit int64) {
	t.Helper()
	source := &indextest.Blob{Data: blob}
	x, err := zstdchunked.Open(l, source, index.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	indextest.Check(t, x, blob, archive, timeUnit)
	if source.Reads != 1 {
		t.Errorf("blob was read %d times", source.Reads)
	}
}

func TestZerosAreHoles(t *testing.T) {
	archive := tartest.Pack([]tartest.File{{Name: "f", Type: '0', Data: append(make([]byte, 8192), "tail"...)}})
	l, blob := indextest.PodmanLayer(t, archive, 4096)
	x, err := zstdchunked.Open(l, &indextest.Blob{Data: blob}, index.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	records, _ := indextest.Records(t, x)
	var got []string
	for _, e := range records[0].Extents {
		got = append(got, fmt.Sprint(e.Offset, e.Length, e.Hole, e.Blob.Bytes() > 0))
	}
	if want := "0 4096 true false,4096 4096 true false,8192 4 false true"; strings.Join(got, ",") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestPrefetchOfStargz(t *testing.T) {
	archive := tartest.Pack([]tartest.File{{Name: "a", Type: '0', Data: []byte("aa")}, {Name: "b", Type: '0', Data: []byte("bb")}})
	l, blob := stargzLayer(t, archive, estargz.WithPrioritizedFiles([]string{"b"}))
	x, err := zstdchunked.Open(l, &indextest.Blob{Data: blob}, index.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	records, prefetch := indextest.Records(t, x)
	if len(records) != 2 || records[0].Name != "b" || prefetch < records[0].Extents[0].Blob.End || prefetch > records[1].Extents[0].Blob.Start {
		t.Errorf("%d records, prefetch %d", len(records), prefetch)
	}
}

func TestRefuses(t *testing.T) {
	const podman, stargz = "io.github.containers.zstd-chunked.manifest-", "io.containers.zstd-chunked.manifest-"
	archive := tartest.Pack([]tartest.File{{Name: "f", Type: '0', Data: []byte("data")}})
	podmanGood, podmanBlob := indextest.PodmanLayer(t, archive, 4096)
	stargzGood, stargzBlob := stargzLayer(t, archive)
	zeros := "sha256:" + strings.Repeat("0", 64)
	for _, c := range []struct {
		name  string
		layer index.Layer
		blob  []byte
		set   string // key=value, or key to delete
		want  string
		is    error
	}{
		{"no annotation", podmanGood, podmanBlob, podman + "checksum", "no annotation", index.ErrNotLazy},
		{"two dialects", podmanGood, podmanBlob, stargz + "checksum=" + zeros, "more than one format", nil},
		{"podman and eStargz", podmanGood, podmanBlob, estargz.TOCJSONDigestAnnotation + "=" + zeros, "more than one format", nil},
		{"no position", podmanGood, podmanBlob, podman + "position", "want four numbers", nil},
		{"position outside", podmanGood, podmanBlob, podman + "position=8:99999:10:1", "of a blob of", nil},
		{"position at the front", podmanGood, podmanBlob, podman + "position=7:9:10:1", "of a blob of", nil},
		{"other type", podmanGood, podmanBlob, podman + "position=8:9:10:2", "type 2", nil},
		{"too many numbers", podmanGood, podmanBlob, podman + "position=8:9:10:1:1", "want four numbers", nil},
		{"negative", podmanGood, podmanBlob, podman + "position=8:-9:10:1", "invalid syntax", nil},
		{"too large", podmanGood, podmanBlob, podman + "position=8:9:157286401:1", "allowed are", index.ErrLimit},
		{"wrong checksum", podmanGood, podmanBlob, podman + "checksum=" + zeros, "compressed table of contents has digest", nil},
		{"checksum that is none", podmanGood, podmanBlob, podman + "checksum=md5:12", "want sha256", nil},
		{"wrong digest of the JSON", stargzGood, stargzBlob, estargz.TOCJSONDigestAnnotation + "=" + zeros, "not the one of the manifest", nil},
		{"wrong checksum of stargz", stargzGood, stargzBlob, stargz + "checksum=" + zeros, "compressed table of contents has digest", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := c.layer
			l.Annotations = maps.Clone(l.Annotations)
			if key, value, ok := strings.Cut(c.set, "="); ok {
				l.Annotations[key] = value
			} else {
				delete(l.Annotations, key)
			}
			_, err := zstdchunked.Open(l, &indextest.Blob{Data: c.blob}, index.Limits{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want ...%s...", err, c.want)
			}
			if c.is != nil && !errors.Is(err, c.is) || c.is == nil && errors.Is(err, index.ErrNotLazy) {
				t.Errorf("%v is of the wrong kind", err)
			}
		})
	}
}

// TestUncompressedLengthIsBelieved: a table of contents that is longer than the manifest says is cut, and then it is not JSON.
func TestUncompressedLengthIsBelieved(t *testing.T) {
	const annotation = "io.github.containers.zstd-chunked.manifest-"
	l, blob := indextest.WithTOC(nil, []byte(`{"version":1,"entries":[]}`), annotation)
	l.Annotations[annotation+"position"] = strings.Replace(l.Annotations[annotation+"position"], ":26:", ":25:", 1)
	x, err := zstdchunked.Open(l, &indextest.Blob{Data: blob}, index.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := x.Records()
	if err == nil {
		_, err = r.Next()
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
}

// FuzzOpen makes annotations that fit whatever the blob holds, so that what follows is reached.
func FuzzOpen(f *testing.F) {
	const text = `{"version":1,"entries":[{"name":"a","type":"reg","size":1,"offset":1,"endOffset":2,"digest":"sha256:00"}]}`
	f.Add([]byte(text), "8:9:10:1", true)
	f.Add([]byte(`{"version":1}`), "", false)
	f.Fuzz(func(t *testing.T, text []byte, position string, podman bool) {
		annotation := "io.containers.zstd-chunked.manifest-"
		if podman {
			annotation = "io.github.containers.zstd-chunked.manifest-"
		}
		l, blob := indextest.WithTOC(make([]byte, 100), text, annotation)
		if position != "" {
			l.Annotations[annotation+"position"] = position
		}
		x, err := zstdchunked.Open(l, &indextest.Blob{Data: blob}, index.Limits{Bytes: 1 << 20})
		if err != nil {
			return
		}
		r, err := x.Records()
		for err == nil {
			_, err = r.Next()
		}
	})
}
