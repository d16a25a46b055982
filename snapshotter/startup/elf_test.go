package startup

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// testELF is an ELF file whose one segment is all of it.
type testELF struct {
	order          binary.ByteOrder // nil: little endian
	machine        uint16           // 0: x86-64
	interp         string
	needed         []string
	rpath, runpath string
}

func (e testELF) bytes() []byte {
	if e.order == nil {
		e.order = binary.LittleEndian
	}
	if e.machine == 0 {
		e.machine = 62
	}
	const headers, base = 64 + 3*56, 0x10000
	names := []byte{0}
	name := func(s string) uint64 {
		at := len(names)
		names = append(append(names, s...), 0)
		return uint64(at)
	}
	var dynamic []uint64
	for _, n := range e.needed {
		dynamic = append(dynamic, dtNeeded, name(n))
	}
	if e.rpath != "" {
		dynamic = append(dynamic, dtRpath, name(e.rpath))
	}
	if e.runpath != "" {
		dynamic = append(dynamic, dtRunpath, name(e.runpath))
	}
	interp := name(e.interp)
	end := uint64(headers + len(names))
	dynamic = append(dynamic, dtStrtab, base+headers, dtStrSz, uint64(len(names)), dtSymtab, base+headers, 0, 0)
	size := end + uint64(8*len(dynamic))

	var b bytes.Buffer
	put := func(v any) { _ = binary.Write(&b, e.order, v) }
	b.WriteString(elfMagic)
	b.Write([]byte{2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	if e.order == binary.BigEndian {
		b.Bytes()[5] = 2
	}
	put([]uint16{3, e.machine})
	put(uint32(1))
	put([]uint64{base, 64, 0})
	put(uint32(0))
	put([]uint16{64, 56, 3, 0, 0, 0})
	segment := func(kind, flags uint32, off, n uint64) {
		put([]uint32{kind, flags})
		put([]uint64{off, base + off, base + off, n, n, 8})
	}
	segment(ptLoad, 6, 0, size)
	segment(ptDynamic, 6, end, uint64(8*len(dynamic)))
	segment(ptInterp, 4, headers+interp, uint64(len(e.interp)))
	b.Write(names)
	put(dynamic)
	return b.Bytes()
}

// testCache is a cache of glibc's loader, of names and paths in turn.
func testCache(pairs ...string) []byte {
	n := len(pairs) / 2
	names := 48 + 24*n
	b := append([]byte("glibc-ld.so.cache1.1"), make([]byte, names-20)...)
	binary.NativeEndian.PutUint32(b[20:], uint32(n))
	for i, s := range pairs {
		binary.NativeEndian.PutUint32(b[48+24*(i/2)+4+4*(i%2):], uint32(len(b)))
		b = append(append(b, s...), 0)
	}
	return b
}

func TestParseELF(t *testing.T) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		b := testELF{order: order, interp: "/lib/ld", needed: []string{"a", "b"}, rpath: "/r"}.bytes()
		o, err := parseELF(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		if o.interp != "/lib/ld" || !slices.Equal(o.needed, []string{"a", "b"}) || o.rpath != "/r" || o.runpath != "" || o.machine != 62 {
			t.Errorf("%v: %+v", order, o)
		}
	}
}

// TestMemory: names of which a hostile file has many with the same bytes do not take much more than the file.
func TestMemory(t *testing.T) {
	long := strings.Repeat("x", maxName-1)
	b := testELF{needed: slices.Repeat([]string{long}, maxNeeded)}.bytes()
	copy(b[64+2*56:64+3*56], b[64+56:64+2*56]) // two dynamic sections
	o, err := parseELF(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(strings.Join(o.needed, "")); n == 0 || n > maxNeededBytes {
		t.Errorf("an ELF file: %d names of %d bytes", len(o.needed), n)
	}

	const entries = 1000
	b = testCache(slices.Repeat([]string{""}, 2*entries)...)
	for i := range entries {
		binary.NativeEndian.PutUint32(b[48+24*i+4:], uint32(len(b)))
		binary.NativeEndian.PutUint32(b[48+24*i+8:], uint32(len(b)))
	}
	b = append(append(b, "/"+long[1:]...), 0)
	n := 0
	for name, paths := range parseCache(b) {
		n += len(name) + len(strings.Join(paths, ""))
	}
	if n == 0 || n > 2*len(b) {
		t.Errorf("a cache of %d bytes: %d", len(b), n)
	}
}

// A program of this machine, as the standard library reads it; and its tables are among what is read.
func TestParseOfThisMachine(t *testing.T) {
	const name = "/bin/sh"
	want, err := elf.Open(name)
	if err == nil {
		defer want.Close()
		if want.Class != elf.ELFCLASS64 {
			err = fmt.Errorf("%s is of %v", name, want.Class)
		}
	}
	testenv.Need(t, testenv.Feature{Name: "elf64", Missing: func() error { return err }})
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	o, err := parseELF(f, fi.Size())
	if err != nil {
		t.Fatal(err)
	}
	libraries, err := want.ImportedLibraries()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(o.needed, libraries) || o.machine != uint16(want.Machine) {
		t.Errorf("%+v, want %q", o, libraries)
	}
	for _, s := range []string{".interp", ".dynamic", ".dynsym", ".dynstr", ".gnu.hash", ".gnu.version", ".gnu.version_r", ".rela.dyn", ".data", ".got"} {
		section := want.Section(s)
		if section == nil {
			continue
		}
		from, to := int64(section.Offset), int64(section.Offset+section.FileSize)
		if !slices.ContainsFunc(o.ranges, func(x extent) bool { return x.from <= from && to <= x.to }) {
			t.Errorf("section %s, %#x to %#x, is not in %#x", s, from, to, o.ranges)
		}
	}
}

// FuzzELF: whatever a file says, what is read of it is within bounds, and in the file.
func FuzzELF(f *testing.F) {
	f.Add(testELF{interp: "/lib/ld", needed: []string{"a", "b"}, runpath: "$ORIGIN"}.bytes())
	f.Add(testELF{order: binary.BigEndian, needed: []string{"a"}, rpath: "/r"}.bytes())
	b := testELF{needed: []string{"a"}}.bytes()
	for _, at := range []int{32, 54, 56, 64 + 8, 64 + 16, 64 + 32, 64 + 56 + 8, 64 + 56 + 32, len(b) - 24, len(b) - 40, len(b) - 64} {
		hostile := slices.Clone(b)
		copy(hostile[at:], "\xff\xff\xff\xff\xff\xff\xff\xff")
		f.Add(hostile)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := parseELF(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		if len(o.needed) > maxNeeded || len(o.interp) > maxName || len(o.rpath) > maxName || len(o.runpath) > maxName {
			t.Fatalf("%d libraries", len(o.needed))
		}
		end := int64(-1)
		for _, x := range o.ranges {
			if x.from <= end || x.to <= x.from || x.from >= int64(len(b)) || x.to >= int64(len(b))+page {
				t.Fatalf("ranges %v of %d bytes", o.ranges, len(b))
			}
			end = x.to
		}
	})
}

// FuzzCache: whatever a cache says, names and paths are bounded.
func FuzzCache(f *testing.F) {
	f.Add(testCache("a", "/a", "b", "/b"))
	f.Add(append(make([]byte, 64), testCache("a", "/a")...))
	f.Fuzz(func(t *testing.T, b []byte) {
		for name, paths := range parseCache(b) {
			for _, p := range paths {
				if name == "" || p == "" || p[0] != '/' || len(name) >= maxName || len(p) >= maxName {
					t.Fatalf("%q: %q", name, p)
				}
			}
		}
	})
}
