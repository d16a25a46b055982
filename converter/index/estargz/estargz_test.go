package estargz_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"strconv"
	"strings"
	"testing"

	builder "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/estargz"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/indextest"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
)

// layer is an eStargz layer made by the library that everybody makes them with.
func layer(t testing.TB, archive []byte, options ...builder.Option) (index.Layer, []byte) {
	t.Helper()
	options = append([]builder.Option{builder.WithCompressionLevel(gzip.BestSpeed)}, options...)
	b, err := builder.Build(io.NewSectionReader(bytes.NewReader(archive), 0, int64(len(archive))), options...)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	blob, err := io.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	return index.Layer{Annotations: map[string]string{builder.TOCJSONDigestAnnotation: b.TOCDigest().String()}, Size: int64(len(blob))}, blob
}

func TestRecordsAreWhatTheArchiveHas(t *testing.T) {
	archive := indextest.Archive(tartest.File{Name: "large", Type: '0', Data: tartest.Pattern(4<<20+1, 1)})
	for name, options := range map[string][]builder.Option{
		"default":            nil,
		"chunks of 65536":    {builder.WithChunkSize(65536)},
		"members of 50000":   {builder.WithMinChunkSize(50000), builder.WithChunkSize(20000)},
		"one member":         {builder.WithMinChunkSize(64 << 20)},
		"files to the front": {builder.WithPrioritizedFiles([]string{"sizes/4096", "kinds/link", "large"})},
	} {
		t.Run(name, func(t *testing.T) {
			l, blob := layer(t, archive, options...)
			x, err := estargz.Open(l, &indextest.Blob{Data: blob}, index.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			indextest.Check(t, x, blob, archive, 1e9)
		})
	}
}

func TestPrefetch(t *testing.T) {
	archive := tartest.Pack([]tartest.File{{Name: "a", Type: '0', Data: []byte("aa")}, {Name: "b", Type: '0', Data: []byte("bb")}})
	for _, files := range [][]string{nil, {"b"}} {
		l, blob := layer(t, archive, builder.WithPrioritizedFiles(files))
		x, err := estargz.Open(l, &indextest.Blob{Data: blob}, index.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		records, prefetch := indextest.Records(t, x)
		if len(records) != 2 {
			t.Fatalf("%d records: a landmark is not hidden", len(records))
		}
		if files == nil {
			if prefetch != 0 {
				t.Errorf("prefetch %d without prioritized files", prefetch)
			}
		} else if records[0].Name != "b" || prefetch < records[0].Extents[0].Blob.End || prefetch > records[1].Extents[0].Blob.Start {
			t.Errorf("prefetch %d, first %q in %v, then %v", prefetch, records[0].Name, records[0].Extents[0].Blob, records[1].Extents[0].Blob)
		}
	}
}

// TestReads: the table of contents is found with one read of a large blob, whose tail it is in, or with two.
func TestReads(t *testing.T) {
	var many []tartest.File
	for i := range 1000 {
		many = append(many, tartest.File{Name: fmt.Sprint(i), Type: '0', Data: tartest.Pattern(1, uint64(i))})
	}
	for _, c := range []struct {
		name  string
		files []tartest.File
		reads int
	}{
		{"one large file", []tartest.File{{Name: "f", Type: '0', Data: tartest.Pattern(4<<20, 1)}}, 1},
		{"many small files", many, 2},
	} {
		l, blob := layer(t, tartest.Pack(c.files))
		source := &indextest.Blob{Data: blob}
		if _, err := estargz.Open(l, source, index.Limits{}); err != nil {
			t.Fatal(err)
		}
		// The footer has the position in 16 digits, which begin 35 bytes before its end.
		at, err := strconv.ParseInt(string(blob[len(blob)-35:][:16]), 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		if needed := l.Size - at; source.Reads != c.reads || source.Bytes > needed+l.Size/100 {
			t.Errorf("%s: %d reads of %d bytes together, where %d of %d are needed", c.name, source.Reads, source.Bytes, needed, l.Size)
		}
	}
}

// handmade is a blob of a table of contents alone, in an archive with one file.
func handmade(t testing.TB, name, text string) (index.Layer, []byte) {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(text))})
	if err == nil {
		_, err = io.WriteString(w, text)
	}
	if err := errors.Join(err, w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	blob := append(b.Bytes(), builder.CreateGzipFooter([]byte("SG\x16\x00"+fmt.Sprintf("%016xSTARGZ", 0)))...)
	return index.Layer{Annotations: map[string]string{builder.TOCJSONDigestAnnotation: digest.FromString(text).String()}, Size: int64(len(blob))}, blob
}

func TestRefuses(t *testing.T) {
	const empty = `{"version":1,"entries":[]}`
	zeros := "sha256:" + strings.Repeat("0", 64)
	for _, c := range []struct {
		name   string
		file   string
		set    string // annotation=value, or annotation to delete
		cut    int    // bytes of the beginning of the blob that stay
		limits index.Limits
		want   string
		is     error
	}{
		{name: "good", file: "stargz.index.json"},
		{name: "no annotation", file: "stargz.index.json", set: builder.TOCJSONDigestAnnotation, want: "no annotation", is: index.ErrNotLazy},
		{name: "zstd:chunked", file: "stargz.index.json", set: "io.containers.zstd-chunked.manifest-checksum=" + zeros, want: "zstd:chunked", is: index.ErrNotLazy},
		{name: "annotation that is no digest", file: "stargz.index.json", set: builder.TOCJSONDigestAnnotation + "=x", want: "want sha256:"},
		{name: "another digest", file: "stargz.index.json", set: builder.TOCJSONDigestAnnotation + "=" + zeros, want: "not the one of the manifest"},
		{name: "another file", file: "index.json", want: "begins with \"index.json\""},
		{name: "cut", file: "stargz.index.json", cut: 100, want: "no eStargz footer"},
		{name: "tiny", file: "stargz.index.json", cut: 50, want: "no footer in a blob of 50"},
		{name: "limit", file: "stargz.index.json", limits: index.Limits{Bytes: 10}, want: "allowed are 10", is: index.ErrLimit},
		{name: "limit of compressed bytes", file: "stargz.index.json", limits: index.Limits{CompressedBytes: 10}, want: "allowed are 10", is: index.ErrLimit},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, blob := handmade(t, c.file, empty)
			l.Annotations = maps.Clone(l.Annotations)
			if key, value, ok := strings.Cut(c.set, "="); ok {
				l.Annotations[key] = value
			} else {
				delete(l.Annotations, key)
			}
			if c.cut > 0 {
				blob, l.Size = blob[:c.cut], int64(c.cut)
			}
			_, err := estargz.Open(l, &indextest.Blob{Data: blob}, c.limits)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("got %v, want ...%s...", err, c.want)
			}
			if c.is != nil && !errors.Is(err, c.is) || c.is == nil && (errors.Is(err, index.ErrNotLazy) || errors.Is(err, index.ErrLimit)) {
				t.Errorf("%v is of the wrong kind", err)
			}
		})
	}
}

// TestReadErrorsAreNotTheIndexs: whoever calls must see that the network is broken, not the layer.
func TestReadErrorsAreNotTheIndexs(t *testing.T) {
	broken := errors.New("network")
	l, _ := handmade(t, "stargz.index.json", "{}")
	if _, err := estargz.Open(l, readerAt(func([]byte, int64) (int, error) { return 0, broken }), index.Limits{}); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

type readerAt func(p []byte, off int64) (int, error)

func (f readerAt) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }
