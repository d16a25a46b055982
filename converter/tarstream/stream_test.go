package tarstream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
)

func TestOffsets(t *testing.T) {
	var b tartest.Builder
	var offsets []int64
	mark := func() { offsets = append(offsets, int64(b.Len())) }
	mark()
	b.Entry(regular("plain"), make([]byte, 1000))
	mark()
	b.PAX("path", "pax")
	b.LongLink("x")
	b.Entry(regular("pax"), []byte("x"))
	b.Global("comment", "belongs to no entry")
	mark()
	b.SparseOld(regular("sparse"), 1<<20, tartest.Segments(0, 512, 1024, 512, 2048, 512, 4096, 512, 8192, 512), make([]byte, 2560))
	mark()
	b.Entry(regular("last"), nil)
	r := NewReader(bytes.NewReader(b.End()), Limits{})
	for _, want := range offsets {
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		name, offset := r.Current()
		if h.Offset != want || offset != want || name != h.Name {
			t.Errorf("%s: Header.Offset %d, Current %q, %d, want %d", h.Name, h.Offset, name, offset, want)
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Fatal(err)
	}
	if got := r.Offset(); got != int64(b.Len()) {
		t.Errorf("Offset at the end: %d, want %d", got, b.Len())
	}
}

func TestEnds(t *testing.T) {
	var b tartest.Builder
	b.Entry(regular("f"), []byte("data"))
	whole := bytes.Clone(b.Bytes())
	zero := make([]byte, 512)
	for name, tt := range map[string]struct {
		archive []byte
		err     error
	}{
		"two zero blocks":            {slices.Concat(whole, zero, zero), nil},
		"one zero block":             {slices.Concat(whole, zero), nil},
		"header boundary":            {whole, nil},
		"padding is missing":         {whole[:516], nil},
		"part of the padding":        {whole[:700], nil},
		"junk after the end":         {slices.Concat(whole, zero, zero, []byte("junk")), nil},
		"data after one zero block":  {slices.Concat(whole, zero, whole), ErrHeader},
		"part of a second zero":      {slices.Concat(whole, zero, zero[:100]), io.ErrUnexpectedEOF},
		"part of a header":           {slices.Concat(whole, whole[:100]), io.ErrUnexpectedEOF},
		"data are missing":           {whole[:515], io.ErrUnexpectedEOF},
		"part of the first zero":     {slices.Concat(whole, zero[:1]), io.ErrUnexpectedEOF},
		"end after extension header": {slices.Concat(whole, build(func(b *tartest.Builder) { b.PAX("path", "x") })), io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := readAll(bytes.NewReader(tt.archive), Limits{})
			if !errors.Is(err, tt.err) || tt.err == nil && len(got) != 1 {
				t.Errorf("got %d entries, %v, want error %v", len(got), err, tt.err)
			}
		})
	}
	if got, err := readAll(strings.NewReader(""), Limits{}); err != nil || len(got) != 0 {
		t.Errorf("empty stream: %d entries, %v", len(got), err)
	}
}

// TestEveryTruncation cuts an archive at every block and inside of blocks. What was read before must be right, and the cut must be an error
// unless it is where an entry may begin.
func TestEveryTruncation(t *testing.T) {
	archive, boundaries := truncatable()
	whole, err := readAll(bytes.NewReader(archive), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for at := range len(archive) {
		if at%512 > 2 && at%512 != 300 && at%512 != 511 {
			continue
		}
		got, err := readAll(bytes.NewReader(archive[:at]), Limits{})
		if len(got) > len(whole) || len(got) > 0 && !reflect.DeepEqual(got, whole[:len(got)]) {
			t.Fatalf("cut at %d: other entries than the whole archive", at)
		}
		switch {
		case boundaries[at] && err != nil:
			t.Errorf("cut at %d, where an entry begins: %v", at, err)
		case !boundaries[at] && !errors.Is(err, io.ErrUnexpectedEOF):
			t.Errorf("cut at %d: %v", at, err)
		}
	}
}

// truncatable returns an archive, and the lengths to which it can be cut without anyone noticing.
func truncatable() ([]byte, map[int]bool) {
	var b tartest.Builder
	ends := map[int]bool{0: true}
	// unused is how many bytes at the end of the entry are padding.
	end := func(unused int) {
		for n := b.Len() - unused; n <= b.Len(); n++ {
			ends[n] = true
		}
	}
	segments := tartest.Segments(0, 512, 1024, 512, 2048, 512, 4096, 512, 8192, 512, 10000, 100)
	data := tartest.SparseData(segments)
	pad := -len(data) & 511
	b.Entry(regular("plain"), tartest.Pattern(1300, 1))
	end(-1300 & 511)
	b.PAX("path", strings.Repeat("p", 700), "SCHILY.xattr.user.x", "y")
	b.Entry(regular("pax"), tartest.Pattern(512, 1))
	end(0)
	b.LongName(strings.Repeat("n", 600))
	b.LongLink(strings.Repeat("l", 600))
	b.Header(tartest.Header{Type: '2', Name: "link"})
	end(0)
	b.SparseOld(regular("old"), 20000, segments, data)
	end(pad)
	b.Sparse01(regular("0.1"), 20000, segments, data)
	end(pad)
	b.Sparse10(regular("1.0"), 20000, segments, data)
	end(pad)
	b.Raw(make([]byte, 512))
	end(0) // one zero block is an end mark
	b.Raw(make([]byte, 512))
	return b.Bytes(), ends
}

// TestBadReaders reads through streams that return little at a time.
func TestBadReaders(t *testing.T) {
	archive, _ := truncatable()
	whole, err := readAll(bytes.NewReader(archive), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"one byte": iotest.OneByteReader, "half": iotest.HalfReader, "data with EOF": iotest.DataErrReader,
	} {
		got, err := readAll(wrap(bytes.NewReader(archive)), Limits{})
		if err != nil || !reflect.DeepEqual(got, whole) {
			t.Errorf("%s: %d entries, %v", name, len(got), err)
		}
	}
	cause := errors.New("cable cut")
	_, err = readAll(io.MultiReader(bytes.NewReader(archive[:600]), iotest.ErrReader(cause)), Limits{})
	if !errors.Is(err, cause) {
		t.Errorf("error of the stream: got %v", err)
	}
	if _, err = readAll(stuck{}, Limits{}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("stuck stream: got %v", err)
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

// TestSkipping leaves data unread, wholly or in part.
func TestSkipping(t *testing.T) {
	big := tartest.Pattern(3*bufferBytes+77, 1)
	archive := build(func(b *tartest.Builder) {
		for i := range 5 {
			b.Entry(regular(fmt.Sprint(i)), big)
		}
	})
	for _, size := range []int{1, 100, 1 << 15, bufferBytes, len(big) - 1, len(big) + 1} {
		r := NewReader(bytes.NewReader(archive), Limits{})
		p := make([]byte, size)
		for i := range 5 {
			h, err := r.Next()
			if err != nil || h.Name != fmt.Sprint(i) {
				t.Fatalf("size %d: entry %d: %v, %v", size, i, h, err)
			}
			n, err := io.ReadFull(r, p[:size*i/4])
			if err != nil && err != io.ErrUnexpectedEOF || !bytes.Equal(p[:n], big[:n]) {
				t.Fatalf("size %d: entry %d: read %d bytes, %v", size, i, n, err)
			}
			if r.Stored() != int64(len(big)-n) || r.Offset() != h.Offset+512+int64(n) {
				t.Fatalf("size %d: entry %d: Stored %d, Offset %d after %d bytes", size, i, r.Stored(), r.Offset(), n)
			}
		}
		if _, err := r.Next(); err != io.EOF {
			t.Fatal(err)
		}
	}
}

func TestAllocations(t *testing.T) {
	const entries = 1000
	archive := build(func(b *tartest.Builder) {
		for range entries {
			b.PAX("path", "dir/name", "mtime", "1.5", "SCHILY.xattr.security.capability", "value", "SCHILY.xattr.user.x", "value")
			b.Sparse10(regular("f"), 1<<30, tartest.Segments(0, 512, 4096, 512), make([]byte, 1024), "uid", "5")
		}
	})
	allocs := testing.AllocsPerRun(5, func() {
		r := NewReader(bytes.NewReader(archive), Limits{})
		for {
			if _, err := r.Next(); err != nil {
				break
			}
		}
	})
	if perEntry := allocs / entries; perEntry > 3.1 { // two names that were replaced, and the one that counts
		t.Errorf("%.1f allocations per entry", perEntry)
	}
}

func BenchmarkSmallFiles(b *testing.B) {
	archive := build(func(b *tartest.Builder) {
		for range 10000 {
			b.Entry(regular("usr/lib/node_modules/name/index.js"), make([]byte, 1500))
		}
	})
	b.SetBytes(int64(len(archive)))
	b.ReportAllocs()
	p := make([]byte, 64<<10)
	for b.Loop() {
		r := NewReader(bytes.NewReader(archive), Limits{})
		for {
			if _, err := r.Next(); err == io.EOF {
				break
			} else if err != nil {
				b.Fatal(err)
			}
			for r.Stored() > 0 {
				if _, err := r.Read(p); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
}
