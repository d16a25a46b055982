package blob

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestTableRoundTrip(t *testing.T) {
	for _, count := range []int{1, pageEntries - 1, pageEntries, pageEntries + 1, 1000} {
		b, extents, dir := newBlob(t, count, 50)
		must(t, b.CheckTable())
		got, err := b.Extents(0, count)
		must(t, err)
		if !slices.Equal(got, extents) {
			t.Errorf("%d extents are not what was written", count)
		}
		got, err = b.Extents(count/2, count)
		must(t, err)
		if !slices.Equal(got, extents[count/2:]) {
			t.Errorf("%d extents: wrong second half", count)
		}
		fi, err := os.Stat(filepath.Join(dir, ExtentsName))
		must(t, err)
		if want := b.table.head.fileBytes(); fi.Size() != want {
			t.Errorf("%d extents: table of %d bytes, want %d", count, fi.Size(), want)
		}
		for _, r := range [][2]int{{-1, 0}, {0, count + 1}, {1, 0}} {
			if _, err := b.Extents(r[0], r[1]); err == nil {
				t.Errorf("extents %v of %d", r, count)
			}
		}
	}
}

// TestCovering compares with looking at every extent.
func TestCovering(t *testing.T) {
	b, extents, _ := newBlob(t, 300, 50)
	r := rand.New(rand.NewPCG(3, 4))
	for range 20000 {
		from := r.Int64N(b.Size()+200) - 100
		length := 1 + r.Int64N(200)
		if r.IntN(20) == 0 {
			length = 1<<63 - 1
		}
		to := b.Size()
		if length < to-from {
			to = from + length
		}
		var want []int
		for i, e := range extents {
			if e.Offset < to && e.End() > from {
				want = append(want, i)
			}
		}
		first, end, err := b.Covering(from, length)
		must(t, err)
		if end-first != len(want) || len(want) > 0 && first != want[0] {
			t.Fatalf("%d bytes at %d: extents %d to %d, want %v", length, from, first, end, want)
		}
	}
}

func TestTableRefuses(t *testing.T) {
	ok := Extent{Offset: 100, Length: 10}
	with := func(change func(*Extent)) []Extent {
		e := ok
		change(&e)
		return []Extent{{Offset: 0, Length: 100}, e}
	}
	for name, list := range map[string][]Extent{
		"overlap":        with(func(e *Extent) { e.Offset = 99 }),
		"disorder":       {ok, {Offset: 0, Length: 1}},
		"negative":       {{Offset: -1, Length: 10}},
		"empty":          with(func(e *Extent) { e.Length = 0 }),
		"too long":       with(func(e *Extent) { e.Length = MaxExtentBytes + 1 }),
		"beyond the end": with(func(e *Extent) { e.Offset = 1<<30 - 9 }),
		"overflow":       with(func(e *Extent) { e.Offset = 1<<63 - 1 }),
		"blob offset":    with(func(e *Extent) { e.BlobOffset = maxBlobOffset }),
		"inner offset":   with(func(e *Extent) { e.InnerOffset = -1 }),
	} {
		if err := Create(t.TempDir(), testID, 1<<30, slices.Values(list)); err == nil {
			t.Errorf("%s: created", name)
		}
	}
	must(t, Create(t.TempDir(), testID, 1<<30, slices.Values(with(func(*Extent) {}))))
	for _, size := range []int64{-1, MaxDataBytes + 1} {
		if err := Create(t.TempDir(), testID, size, slices.Values([]Extent(nil))); err == nil {
			t.Errorf("data of %d bytes: created", size)
		}
	}
}

// TestDamagedPage: a page of entries that is damaged is noticed by whoever needs it, and by nobody else.
func TestDamagedPage(t *testing.T) {
	b, extents, dir := newBlob(t, 200, 50)
	must(t, flip(dir, ExtentsName, 2*pageBytes+700))
	bad := pageEntries + 5
	if _, _, err := b.Covering(extents[bad].Offset, 1); !errors.Is(err, ErrUnusable) {
		t.Errorf("covering: %v", err)
	}
	if err := b.Write(bad, contentOf(bad, extents[bad])); !errors.Is(err, ErrUnusable) || b.Present(bad) {
		t.Errorf("write: %v", err)
	}
	if err := b.CheckTable(); !errors.Is(err, ErrUnusable) {
		t.Errorf("check: %v", err)
	}
	fill(t, b, extents, 0, 199)
}

// TestFormatSizes pins the formats: whoever changes them needs a new version.
func TestFormatSizes(t *testing.T) {
	head := tableHead{count: 64}
	if got := head.fileBytes(); got != 4096*3+16 {
		t.Errorf("table of 64 extents has %d bytes", got)
	}
	if groupLength != 32576 {
		t.Errorf("a group has %d extents", groupLength)
	}
	if got := (recordHead{count: 32577}).fileBytes(); got != 4096*5 {
		t.Errorf("record of 32577 extents has %d bytes", got)
	}
	e := Extent{Offset: 0x0102030405060708, Length: 0x11121314, BlobOffset: 0x2122232425262728, BlobLength: 0x31323334,
		InnerOffset: 0x42434445464748, Kind: 0x51, Digest: testID}
	var b [entryBytes]byte
	e.put(b[:])
	want := append([]byte("\x08\x07\x06\x05\x04\x03\x02\x01\x28\x27\x26\x25\x24\x23\x22\x21\x48\x47\x46\x45\x44\x43\x42\x51"+
		"\x14\x13\x12\x11\x34\x33\x32\x31"), testID[:]...)
	if !slices.Equal(b[:], want) {
		t.Errorf("entry % x, want % x", b, want)
	}
	if got := getExtent(b[:]); got != e {
		t.Errorf("read back %+v", got)
	}
}
