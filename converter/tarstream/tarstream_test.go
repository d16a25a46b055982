package tarstream

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// entry is a copy of what the reader says about an entry.
type entry struct {
	Header
	data string // as stored
}

// readAll reads an archive to its end or the first error.
func readAll(r io.Reader, limits Limits) ([]entry, error) {
	tr := NewReader(r, limits)
	var list []entry
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		e := entry{Header: *h}
		e.Sparse = slices.Clone(h.Sparse)
		e.Xattrs = nil
		for _, x := range h.Xattrs {
			e.Xattrs = append(e.Xattrs, Xattr{x.Name, bytes.Clone(x.Value)})
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			return list, err
		}
		if left := tr.Stored(); left != 0 {
			return list, fmt.Errorf("%d bytes left after reading all", left)
		}
		e.data = string(data)
		list = append(list, e)
	}
}

func build(f func(b *tartest.Builder)) []byte {
	var b tartest.Builder
	f(&b)
	return b.End()
}

// regular is a header whose values are easy to recognize.
func regular(name string) tartest.Header {
	return tartest.Header{Name: name, Type: '0', Mode: 0o644, UID: 1, GID: 2, ModTime: 3}
}

// want is what regular becomes.
func want(name, data string) entry {
	return entry{Header{Name: name, Mode: 0o644, UID: 1, GID: 2, ModTime: Time{3, 0}, Size: int64(len(data))}, data}
}

func TestForms(t *testing.T) {
	long := strings.Repeat("long/", 60) + "name"
	tests := []struct {
		name  string
		build func(b *tartest.Builder)
		want  func(e *entry) // changes want("f", "data")
	}{
		{"v7", func(b *tartest.Builder) {
			h := regular("f")
			h.Magic, h.Type = tartest.V7, 0
			b.Entry(h, []byte("data"))
		}, nil},
		{"ustar prefix", func(b *tartest.Builder) {
			h := regular("f")
			h.Prefix = strings.Repeat("p", 155)
			b.Entry(h, []byte("data"))
		}, func(e *entry) { e.Name = strings.Repeat("p", 155) + "/f" }},
		{"star prefix is shorter", func(b *tartest.Builder) {
			h := regular("f")
			h.Magic, h.Prefix = tartest.Star, strings.Repeat("p", 131)
			h.Edit = func(b []byte) { copy(b[345+131:], "14000000000\x0014000000000\x00") }
			b.Entry(h, []byte("data"))
		}, func(e *entry) { e.Name = strings.Repeat("p", 131) + "/f" }},
		{"GNU has no prefix", func(b *tartest.Builder) {
			h := regular("f")
			h.Magic = tartest.GNU
			h.Edit = func(b []byte) { copy(b[345:], "14000000000\x0014000000000\x00") }
			b.Entry(h, []byte("data"))
		}, nil},
		{"GNU with the prefix of old Go", func(b *tartest.Builder) {
			h := regular("f")
			h.Magic, h.Prefix = tartest.GNU, "usr/lib"
			b.Entry(h, []byte("data"))
		}, func(e *entry) { e.Name = "usr/lib/f" }},
		{"base-256", func(b *tartest.Builder) {
			h := regular("f")
			h.Base256, h.UID, h.GID, h.ModTime = true, math.MaxUint32-1, math.MaxUint32-1, -5
			b.Entry(h, []byte("data"))
		}, func(e *entry) { e.UID, e.GID, e.ModTime.Sec = math.MaxUint32-1, math.MaxUint32-1, -5 }},
		{"spaces in numbers", func(b *tartest.Builder) {
			h := regular("f")
			h.Edit = func(b []byte) {
				copy(b[100:], "   644 \x00")
				copy(b[108:], "\x00     1 ")
				copy(b[116:], "2\x00junk  ")
			}
			b.Entry(h, []byte("data"))
		}, nil},
		{"empty numbers", func(b *tartest.Builder) {
			h := regular("f")
			h.Edit = func(b []byte) { copy(b[100:], make([]byte, 24)); copy(b[136:], "            ") }
			b.Entry(h, []byte("data"))
		}, func(e *entry) { e.Mode, e.UID, e.GID, e.ModTime.Sec = 0, 0, 0, 0 }},
		{"file type in the mode", func(b *tartest.Builder) {
			h := regular("f")
			h.Mode = 0o104755
			b.Entry(h, []byte("data"))
		}, func(e *entry) { e.Mode = 0o4755 }},
		{"signed checksum", func(b *tartest.Builder) {
			h := regular("\xff\xfe")
			h.Sum = tartest.Signed
			b.Entry(h, []byte("data"))
		}, func(e *entry) { e.Name = "\xff\xfe" }},
		{"contiguous", func(b *tartest.Builder) {
			h := regular("f")
			h.Type = '7'
			b.Entry(h, []byte("data"))
		}, nil},
		{"name without NUL", func(b *tartest.Builder) { b.Entry(regular(strings.Repeat("n", 100)), []byte("data")) },
			func(e *entry) { e.Name = strings.Repeat("n", 100) }},
		{"GNU long name", func(b *tartest.Builder) {
			b.LongName(long)
			b.Entry(regular(long[:100]), []byte("data"))
		}, func(e *entry) { e.Name = long }},
		{"GNU long name without NUL", func(b *tartest.Builder) {
			b.Entry(tartest.Header{Magic: tartest.GNU, Type: 'L'}, []byte(long))
			b.Entry(regular(long[:100]), []byte("data"))
		}, func(e *entry) { e.Name = long }},
		{"long name wins over PAX path", func(b *tartest.Builder) {
			b.LongName("gnu")
			b.PAX("path", "pax")
			b.Entry(regular("f"), []byte("data"))
		}, func(e *entry) { e.Name = "gnu" }},
		{"PAX", func(b *tartest.Builder) {
			b.PAX("path", long, "uid", "4294967294", "gid", "0", "mtime", "1.5", "comment", "x", "hdrcharset", "BINARY", "VENDOR.thing", "")
			b.Entry(regular("f"), []byte("data"))
		}, func(e *entry) { e.Name, e.UID, e.GID, e.ModTime = long, math.MaxUint32-1, 0, Time{1, 5e8} }},
		{"Solaris extended header", func(b *tartest.Builder) {
			b.Entry(tartest.Header{Type: 'X'}, tartest.Records("path", "sun"))
			b.Entry(regular("f"), []byte("data"))
		}, func(e *entry) { e.Name = "sun" }},
		{"PAX size", func(b *tartest.Builder) {
			b.PAX("size", "4")
			h := regular("f")
			h.Size = 0
			b.Header(h)
			b.Data([]byte("data"))
		}, nil},
		{"empty PAX values delete", func(b *tartest.Builder) {
			b.Global("mtime", "77")
			b.PAX("path", "x", "path", "", "uid", "9", "uid", "", "mtime", "")
			b.Entry(regular("f"), []byte("data"))
		}, nil},
		{"the last PAX header replaces the others", func(b *tartest.Builder) {
			b.PAX("path", "x", "uid", "9", "SCHILY.xattr.user.a", "1")
			b.PAX("gid", "8")
			b.Entry(regular("f"), []byte("data"))
		}, func(e *entry) { e.GID = 8 }},
		{"global", func(b *tartest.Builder) {
			b.Global("mtime", "5.25", "comment", "0123456789abcdef")
			b.Global("uid", "6")
			b.Entry(regular("f"), []byte("data"))
		}, func(e *entry) { e.ModTime, e.UID = Time{5, 25e7}, 6 }},
		{"global and local", func(b *tartest.Builder) {
			b.Global("uid", "6", "gid", "7")
			b.PAX("uid", "8")
			b.Entry(regular("f"), []byte("data"))
		}, func(e *entry) { e.UID, e.GID = 8, 7 }},
		{"global after local counts later", func(b *tartest.Builder) {
			b.PAX("gid", "8")
			b.Global("uid", "6")
			b.Entry(regular("f"), []byte("data"))
		}, func(e *entry) { e.GID = 8 }},
		{"volume label", func(b *tartest.Builder) {
			b.Entry(tartest.Header{Magic: tartest.GNU, Name: "label", Type: 'V'}, nil)
			b.Entry(regular("f"), []byte("data"))
		}, nil},
		{"device of a regular file is not looked at", func(b *tartest.Builder) {
			h := regular("f")
			h.Edit = func(b []byte) { copy(b[329:], "garbage!garbage!") }
			b.Entry(h, []byte("data"))
		}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readAll(bytes.NewReader(build(tt.build)), Limits{})
			if err != nil || len(got) != 1 {
				t.Fatalf("got %d entries, %v", len(got), err)
			}
			e := want("f", "data")
			if tt.want != nil {
				tt.want(&e)
			}
			e.Offset = got[0].Offset // has a test of its own
			if !reflect.DeepEqual(got[0], e) {
				t.Errorf("\n got %+v\nwant %+v", got[0], e)
			}
		})
	}
}

func TestTypes(t *testing.T) {
	tests := []struct {
		typ  byte
		name string
		want Header
	}{
		{'0', "f/", Header{Type: Regular, Size: 4}},
		{0, "f", Header{Type: Regular, Size: 4}},
		{0, "f/", Header{Type: Directory}},
		{'1', "f", Header{Type: HardLink, Linkname: "target"}},
		{'2', "f", Header{Type: Symlink, Linkname: "target"}},
		{'3', "f", Header{Type: CharDevice, Devmajor: 4095, Devminor: 1<<20 - 1}},
		{'4', "f", Header{Type: BlockDevice, Devmajor: 4095, Devminor: 1<<20 - 1}},
		{'5', "f", Header{Type: Directory}},
		{'6', "f", Header{Type: FIFO}},
		{'D', "f", Header{Type: Directory}},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%q %s", tt.typ, tt.name), func(t *testing.T) {
			archive := build(func(b *tartest.Builder) {
				h := tartest.Header{Name: tt.name, Linkname: "target", Type: tt.typ, Size: 4, Devmajor: 4095, Devminor: 1<<20 - 1}
				b.Header(h)
				if tt.want.Type == Regular || tt.typ == 'D' { // nothing else has data, whatever the size says
					b.Data([]byte("data"))
				}
				b.Entry(regular("next"), nil)
			})
			got, err := readAll(bytes.NewReader(archive), Limits{})
			if err != nil || len(got) != 2 || got[1].Name != "next" {
				t.Fatalf("got %+v, %v", got, err)
			}
			tt.want.Name = tt.name
			if !reflect.DeepEqual(got[0].Header, tt.want) {
				t.Errorf("\n got %+v\nwant %+v", got[0].Header, tt.want)
			}
		})
	}
}

func TestGlobalLasts(t *testing.T) {
	got, err := readAll(bytes.NewReader(build(func(b *tartest.Builder) {
		b.Global("uid", "6", "gid", "7")
		b.Entry(regular("1"), nil)
		b.Global("uid", "8")
		b.Entry(regular("2"), nil)
		b.Entry(regular("3"), nil)
		b.Global("uid", "")
		b.Entry(regular("4"), nil)
	})), Limits{})
	if err != nil || len(got) != 4 {
		t.Fatalf("%d entries, %v", len(got), err)
	}
	for i, uid := range []uint32{6, 8, 8, 1} {
		if got[i].UID != uid || got[i].GID != 7 {
			t.Errorf("entry %s: owner %d:%d, want %d:7", got[i].Name, got[i].UID, got[i].GID, uid)
		}
	}
}

func TestTimes(t *testing.T) {
	for text, want := range map[string]Time{
		"0": {}, "1.": {1, 0}, "-0": {}, "1.5": {1, 5e8}, "-1": {-1, 0}, "-1.5": {-2, 5e8}, "-0.25": {-1, 75e7}, "1.0000000019999": {1, 1},
		"1.123456789": {1, 123456789}, "-1.000000001": {-2, 999999999}, "8589934592.999999999": {1 << 33, 999999999}, "0.0000000001": {},
		"-0.0000000001": {}, "9223372036854775807.9": {math.MaxInt64, 9e8}, "-9223372036854775807.9": {math.MinInt64, 1e8},
	} {
		if got, err := paxTime([]byte(text)); err != nil || got != want {
			t.Errorf("%s: got %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"-", ".5", "1.x", "1.5.5", "1e3", " 1", "+1", "--1", "1.-5", "9223372036854775808"} {
		if got, err := paxTime([]byte(text)); err == nil {
			t.Errorf("%s: got %+v, want an error", text, got)
		}
	}
}

// TestEdgeTables reads the archives of the converter's tests.
func TestEdgeTables(t *testing.T) {
	types := map[byte]Type{'0': Regular, '1': HardLink, '2': Symlink, '3': CharDevice, '4': BlockDevice, '5': Directory, '6': FIFO}
	files := slices.Concat(tartest.Edge(), tartest.Duplicates(), tartest.LargeXattrs())
	got, err := readAll(bytes.NewReader(tartest.Pack(files)), Limits{})
	if err != nil || len(got) != len(files) {
		t.Fatalf("%d of %d entries, %v", len(got), len(files), err)
	}
	for i, f := range files {
		h := Header{
			Name: f.Name, Linkname: f.Linkname, Type: types[f.Type], Size: int64(len(f.Data)), Mode: f.Mode, UID: f.UID, GID: f.GID,
			ModTime: Time{f.Sec, f.Nsec}, Devmajor: f.Devmajor, Devminor: f.Devminor, Offset: got[i].Offset,
		}
		for _, x := range f.Xattrs {
			h.Xattrs = append(h.Xattrs, Xattr{x.Name, bytes.Clone([]byte(x.Value))})
		}
		if len(got[i].Xattrs) == 0 {
			got[i].Xattrs = nil
		}
		if !sameHeader(got[i].Header, h) || got[i].data != string(f.Data) {
			t.Errorf("%q:\n got %+v\nwant %+v", f.Name, got[i].Header, h)
		}
	}
}

func sameHeader(a, b Header) bool {
	sameXattr := func(x, y Xattr) bool { return x.Name == y.Name && bytes.Equal(x.Value, y.Value) }
	if !slices.EqualFunc(a.Xattrs, b.Xattrs, sameXattr) {
		return false
	}
	a.Xattrs, b.Xattrs = nil, nil
	return reflect.DeepEqual(a, b)
}
