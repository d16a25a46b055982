package toc_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/internal/toc"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tarstream"
)

// FuzzReader checks that whatever comes out keeps the promises of index.Record.
func FuzzReader(f *testing.F) {
	seeds := []string{
		`{"name":"d/","type":"dir","mode":493,"modtime":"2024-05-06T07:08:09Z","xattrs":{"user.x":"eA=="}},{"name":"d/l","type":"hardlink","linkName":"d/a"}`,
		`{"name":"a","type":"reg","size":5,"offset":10,"chunkSize":3,"chunkDigest":"SUM"},{"type":"chunk","offset":30,"chunkOffset":3,"chunkDigest":"SUM"}`,
		`{"name":"a","type":"reg","size":9,"offset":10,"endOffset":90,"chunkSize":2,"chunkDigest":"SUM"},` +
			`{"type":"chunk","name":"a","offset":30,"chunkOffset":2,"chunkSize":7,"chunkType":"zeros"}`,
		`{"name":".prefetch.landmark","type":"reg","size":1,"offset":60,"innerOffset":5,"chunkDigest":"SUM"},{"name":"c","type":"char","devMajor":1}`,
	}
	for _, s := range seeds {
		f.Add(document(strings.ReplaceAll(s, "SUM", sum)))
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, d := range []toc.Dialect{toc.Stargz, toc.Podman} {
			r, err := toc.NewReader(strings.NewReader(text), d, dataEnd, index.Limits{})
			if err != nil {
				continue
			}
			for {
				record, err := r.Next()
				if err != nil {
					if _, again := r.Next(); !errors.Is(again, err) && again.Error() != err.Error() {
						t.Fatalf("%v, then %v", err, again)
					}
					break
				}
				promises(t, record)
			}
			if p := r.Prefetch(); p < 0 || p > dataEnd {
				t.Fatalf("prefetch %d", p)
			}
		}
	})
}

func promises(t *testing.T, r *index.Record) {
	t.Helper()
	names := []string{r.Name}
	if r.Type == tarstream.HardLink {
		names = append(names, r.Linkname)
	}
	for _, name := range names {
		for _, part := range strings.Split(name, "/") {
			if name != "" && (part == "" || part == "." || part == "..") || strings.Contains(part, "\x00") {
				t.Fatalf("name %q", name)
			}
		}
	}
	var at int64
	for _, x := range r.Extents {
		if x.Offset != at || x.Length <= 0 {
			t.Fatalf("%q: extent %+v at %d", r.Name, x, at)
		}
		if at += x.Length; x.Hole == x.Blob.Within(dataEnd) || x.Skip < 0 {
			t.Fatalf("%q: extent %+v", r.Name, x)
		}
	}
	if at != r.Size || r.Size > 0 && r.Type != tarstream.Regular {
		t.Fatalf("%q: %d bytes of extents, size %d, %v", r.Name, at, r.Size, r.Type)
	}
}

// TestErrorsAreFinal is the promise of index.Reader for the errors that come while records wait.
func TestErrorsAreFinal(t *testing.T) {
	r, err := toc.NewReader(strings.NewReader(document(`{"name":"a","type":"dir"},{"name":"b","type":"odd"},{"name":"c","type":"dir"}`)), toc.Podman, dataEnd, index.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if record, err := r.Next(); err != nil || record.Name != "a" {
		t.Fatalf("%v, %v", record, err)
	}
	for range 2 {
		if _, err := r.Next(); err == nil || err == io.EOF || !strings.Contains(err.Error(), `entry "b"`) {
			t.Errorf("got %v", err)
		}
	}
}
