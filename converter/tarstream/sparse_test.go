package tarstream

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
)

// sparseForms are the ways to write a sparse file.
var sparseForms = map[string]func(b *tartest.Builder, h tartest.Header, size int64, segments []tartest.Segment, data []byte){
	"old GNU": (*tartest.Builder).SparseOld,
	"0.0":     (*tartest.Builder).Sparse00,
	"0.1":     (*tartest.Builder).Sparse01,
	"1.0": func(b *tartest.Builder, h tartest.Header, size int64, segments []tartest.Segment, data []byte) {
		b.Sparse10(h, size, segments, data)
	},
}

// manySegments is more than one old extension block and more than one block of a 1.0 map.
func manySegments() ([]tartest.Segment, []Segment) {
	var in []tartest.Segment
	var out []Segment
	for i := range int64(100) {
		in = append(in, tartest.Segment{Offset: i * 4096, Length: 512})
		out = append(out, Segment{i * 4096, 512})
	}
	return in, out
}

func TestSparse(t *testing.T) {
	many, manyWant := manySegments()
	tests := []struct {
		name     string
		size     int64
		segments []tartest.Segment
		want     []Segment
	}{
		{"one", 1 << 20, tartest.Segments(4096, 512), []Segment{{4096, 512}}},
		{"as GNU tar ends its maps", 1 << 20, tartest.Segments(0, 512, 8192, 512, 1<<20, 0), []Segment{{0, 512}, {8192, 512}}},
		{"all hole", 1 << 20, tartest.Segments(1<<20, 0), []Segment{}},
		{"no hole", 1000, tartest.Segments(0, 1000), nil},
		{"empty file", 0, tartest.Segments(0, 0), nil},
		{"neighbours", 4096, tartest.Segments(0, 10, 10, 20, 30, 0, 30, 5, 100, 1), []Segment{{0, 35}, {100, 1}}},
		{"odd lengths", 200, tartest.Segments(1, 1, 3, 1, 5, 3, 199, 1), []Segment{{1, 1}, {3, 1}, {5, 3}, {199, 1}}},
		{"five", 1 << 20, tartest.Segments(0, 1, 10, 1, 20, 1, 30, 1, 40, 1), []Segment{{0, 1}, {10, 1}, {20, 1}, {30, 1}, {40, 1}}},
		{"many", 1 << 20, many, manyWant},
		{"1 TiB", 1 << 40, tartest.Segments(1<<39, 512, 1<<40-1, 1), []Segment{{1 << 39, 512}, {1<<40 - 1, 1}}},
	}
	for form, write := range sparseForms {
		for _, tt := range tests {
			t.Run(form+"/"+tt.name, func(t *testing.T) {
				data := tartest.SparseData(tt.segments)
				archive := build(func(b *tartest.Builder) {
					write(b, regular("f"), tt.size, tt.segments, data)
					b.Entry(regular("next"), nil)
				})
				got, err := readAll(bytes.NewReader(archive), Limits{})
				if err != nil || len(got) != 2 {
					t.Fatalf("got %d entries, %v", len(got), err)
				}
				e := want("f", string(data))
				e.Size, e.Sparse = tt.size, tt.want
				if !reflect.DeepEqual(got[0], e) {
					t.Errorf("\n got %.300v\nwant %.300v", fmt.Sprintf("%+v", got[0]), fmt.Sprintf("%+v", e))
				}
			})
		}
	}
}

// TestNoSegments has maps without any segment: the file is one hole, and not dense.
func TestNoSegments(t *testing.T) {
	for form, write := range sparseForms {
		archive := build(func(b *tartest.Builder) { write(b, regular("f"), 1000, nil, nil) })
		got, err := readAll(bytes.NewReader(archive), Limits{})
		if form == "0.0" { // it cannot be told from a file without a map
			if !errors.Is(err, ErrHeader) {
				t.Errorf("%s: got %+v, %v", form, got, err)
			}
			continue
		}
		if err != nil || len(got) != 1 || got[0].Size != 1000 || got[0].Sparse == nil {
			t.Errorf("%s: got %+v, %v", form, got, err)
		}
	}
}

func TestSparse00WithVersion(t *testing.T) {
	archive := build(func(b *tartest.Builder) {
		b.PAX("GNU.sparse.major", "0", "GNU.sparse.minor", "0", "GNU.sparse.size", "100", "GNU.sparse.numblocks", "1",
			"GNU.sparse.offset", "50", "GNU.sparse.numbytes", "4")
		b.Entry(regular("f"), []byte("data"))
	})
	got, err := readAll(bytes.NewReader(archive), Limits{})
	if err != nil || len(got) != 1 || got[0].Size != 100 || !reflect.DeepEqual(got[0].Sparse, []Segment{{50, 4}}) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestSparseErrors(t *testing.T) {
	for form, write := range sparseForms {
		for name, tt := range map[string]struct {
			size     int64
			segments []tartest.Segment
			data     int
			err      error
		}{
			"overlap":           {1000, tartest.Segments(0, 100, 99, 100), 200, ErrHeader},
			"backwards":         {1000, tartest.Segments(500, 100, 0, 100), 200, ErrHeader},
			"empty one outside": {1000, tartest.Segments(0, 100, 1001, 0), 100, ErrHeader},
			"beyond the end":    {1000, tartest.Segments(950, 51), 51, ErrHeader},
			"overflow":          {1000, tartest.Segments(1<<62, 1<<62, 1<<62, 1<<62), 0, ErrHeader},
			"more data":         {1000, tartest.Segments(0, 100), 101, ErrHeader},
			"less data":         {1000, tartest.Segments(0, 100), 99, ErrHeader},
			"too large":         {1 << 50, tartest.Segments(0, 100), 100, ErrLimit},
			"too many":          {1000, tartest.Segments(0, 1, 1, 1, 2, 1, 3, 1, 4, 1, 5, 1, 6, 1), 7, ErrLimit},
		} {
			t.Run(form+"/"+name, func(t *testing.T) {
				archive := build(func(b *tartest.Builder) { write(b, regular("f"), tt.size, tt.segments, make([]byte, tt.data)) })
				if got, err := readAll(bytes.NewReader(archive), Limits{SparseSegments: 6}); !errors.Is(err, tt.err) {
					t.Errorf("got %+v, %v", got, err)
				}
			})
		}
	}
}

func TestOddSparseHeaders(t *testing.T) {
	withMap := func(m string) func(b *tartest.Builder) {
		return func(b *tartest.Builder) {
			b.PAX("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "f", "GNU.sparse.realsize", "1000")
			b.Entry(regular("x"), append([]byte(m), make([]byte, -len(m)&511)...))
		}
	}
	records := func(r ...string) func(b *tartest.Builder) {
		return func(b *tartest.Builder) {
			b.PAX(r...)
			b.Entry(regular("f"), []byte("data"))
		}
	}
	edited := func(edit func(b []byte)) func(b *tartest.Builder) {
		return func(b *tartest.Builder) {
			h := regular("f")
			h.Edit = edit
			b.SparseOld(h, 1000, tartest.Segments(0, 4), []byte("data"))
		}
	}
	for name, f := range map[string]func(b *tartest.Builder){
		"map without end":       withMap(strings.Repeat("1\n", 256)),
		"map of letters":        withMap("1\nx\n1\n"),
		"empty number":          withMap("\n"),
		"negative number":       withMap("-1\n"),
		"long number":           withMap(strings.Repeat("0", 30) + "\n"),
		"large number":          withMap("9223372036854775808\n"),
		"trillions announced":   withMap("1000000000000\n0\n"),
		"no data at all":        func(b *tartest.Builder) { withMap("")(b) },
		"unknown version":       records("GNU.sparse.major", "2", "GNU.sparse.minor", "0"),
		"version of one number": records("GNU.sparse.major", "1"),
		"no map":                records("GNU.sparse.size", "4"),
		"no count":              records("GNU.sparse.size", "4", "GNU.sparse.map", "0,4"),
		"wrong count":           records("GNU.sparse.size", "4", "GNU.sparse.map", "0,4", "GNU.sparse.numblocks", "2"),
		"odd map":               records("GNU.sparse.size", "4", "GNU.sparse.map", "0,4,4", "GNU.sparse.numblocks", "1"),
		"comma at the end":      records("GNU.sparse.size", "4", "GNU.sparse.map", "0,4,", "GNU.sparse.numblocks", "1"),
		"two offsets":           records("GNU.sparse.offset", "0", "GNU.sparse.offset", "0"),
		"length first":          records("GNU.sparse.numbytes", "0"),
		"offset alone":          records("GNU.sparse.size", "4", "GNU.sparse.numblocks", "1", "GNU.sparse.offset", "0"),
		"two maps":              records("GNU.sparse.map", "0,4", "GNU.sparse.offset", "0", "GNU.sparse.numbytes", "4", "GNU.sparse.numblocks", "1"),
		"negative size":         records("GNU.sparse.size", "-4", "GNU.sparse.map", "0,4", "GNU.sparse.numblocks", "1"),
		"directory": func(b *tartest.Builder) {
			b.PAX("GNU.sparse.map", "0,4")
			b.Header(tartest.Header{Name: "d", Type: '5'})
		},
		"old and PAX":              func(b *tartest.Builder) { b.PAX("GNU.sparse.map", "0,4"); edited(nil)(b) },
		"old with ustar magic":     edited(func(b []byte) { copy(b[257:], "ustar\x0000") }),
		"old without length":       edited(func(b []byte) { clear(b[398:410]) }),
		"old without offset":       edited(func(b []byte) { clear(b[386:398]) }),
		"old with negative offset": edited(func(b []byte) { tartest.PutBase256(b[386:398], -1) }),
		"old with negative length": edited(func(b []byte) { tartest.PutBase256(b[398:410], -1) }),
		"old with negative size":   edited(func(b []byte) { tartest.PutBase256(b[483:495], -1) }),
		"old with junk":            edited(func(b []byte) { b[386] = 'x' }),
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := readAll(bytes.NewReader(build(f)), Limits{}); !errors.Is(err, ErrHeader) {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}
