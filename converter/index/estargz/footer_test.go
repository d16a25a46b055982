package estargz

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	builder "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/externaltoc"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/internal/toc"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
)

// footer makes a footer like that of a blob, of an extra field.
func footer(extra string) []byte { return builder.CreateGzipFooter([]byte(extra)) }

func TestFooter(t *testing.T) {
	const size = 5000
	for _, c := range []struct {
		name  string
		extra string
		want  index.Range
		err   string
	}{
		{"eStargz", "SG\x16\x00" + fmt.Sprintf("%016xSTARGZ", 1000), index.Range{Start: 1000, End: size - 51}, ""},
		{"CRFS", fmt.Sprintf("%016xSTARGZ", 1000), index.Range{Start: 1000, End: size - 47}, ""},
		{"upper case", "SG\x16\x00" + fmt.Sprintf("%016XSTARGZ", 0xabc), index.Range{Start: 0xabc, End: size - 51}, ""},
		{"external", "SG\x11\x00STARGZEXTERNALTOC", index.Range{}, "another image"},
		{"in the footer", "SG\x16\x00" + fmt.Sprintf("%016xSTARGZ", size-51), index.Range{}, "of a blob of 5000"},
		{"negative", "SG\x16\x00ffffffffffffffffSTARGZ", index.Range{}, "out of range"},
		{"not a number", "SG\x16\x00000000000000-123STARGZ", index.Range{}, "invalid syntax"},
		{"other magic", "SG\x16\x00" + fmt.Sprintf("%016xSTARGX", 1000), index.Range{}, "no eStargz footer"},
		{"other subfield", "SH\x16\x00" + fmt.Sprintf("%016xSTARGZ", 1000), index.Range{}, "no eStargz footer"},
		{"no extra field", "", index.Range{}, "no eStargz footer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tail := append(make([]byte, footerBytes), footer(c.extra)...)
			got, err := parseFooter(tail, size)
			if got != c.want || c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("got %v, %v; want %v, %s", got, err, c.want, c.err)
			}
		})
	}
	if _, err := parseFooter(footer("SG\x11\x00STARGZEXTERNALTOC"), size); !errors.Is(err, index.ErrNotLazy) {
		t.Errorf("external: got %v", err)
	}
}

// TestExternalTOC uses the footer of the library that makes such blobs.
func TestExternalTOC(t *testing.T) {
	archive := tartest.Pack([]tartest.File{{Name: "f", Type: '0', Data: []byte("data")}})
	compressor := externaltoc.NewGzipCompressor()
	decompressor := new(externaltoc.GzipDecompressor)
	b, err := builder.Build(io.NewSectionReader(bytes.NewReader(archive), 0, int64(len(archive))),
		builder.WithCompression(struct {
			builder.Compressor
			builder.Decompressor
		}{compressor, decompressor}))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	blob, err := io.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	l := index.Layer{Annotations: map[string]string{toc.DigestAnnotation: b.TOCDigest().String()}, Size: int64(len(blob))}
	if _, err := Open(l, bytes.NewReader(blob), index.Limits{}); !errors.Is(err, index.ErrNotLazy) {
		t.Errorf("got %v", err)
	}
}

func FuzzFooter(f *testing.F) {
	f.Add(footer("SG\x16\x00"+fmt.Sprintf("%016xSTARGZ", 1000)), int64(5000))
	f.Add(footer(fmt.Sprintf("%016xSTARGZ", 1000)), int64(5000))
	f.Add(footer("SG\x11\x00STARGZEXTERNALTOC"), int64(5000))
	f.Fuzz(func(t *testing.T, tail []byte, size int64) {
		r, err := parseFooter(tail, size)
		if err == nil && (!r.Within(size) || r.End > size-47) {
			t.Errorf("%v of a blob of %d", r, size)
		}
	})
}
