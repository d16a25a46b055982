package blob

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
)

// memory is a file that is read only.
type memory struct{ *bytes.Reader }

func (m memory) WriteAt([]byte, int64) (int, error) { return 0, errors.ErrUnsupported }
func (m memory) size() (int64, error)               { return m.Size(), nil }
func (m memory) truncate(int64) error               { return errors.ErrUnsupported }
func (m memory) datasync() error                    { return errors.ErrUnsupported }
func (m memory) Close() error                       { return nil }

// contents is what a file of a disk has.
func contents(d *disk, name string) []byte { return slices.Clone(d.names[name].seen) }

func putSum(page []byte, begin uint32) {
	binary.LittleEndian.PutUint32(page[pageSum:], checksum(begin, page[:pageSum]))
}

// sumTable makes the checksums of a table right, as far as it has the length for it, so that the fuzzer gets behind them.
func sumTable(b []byte) {
	if len(b) < pageBytes {
		return
	}
	pages := (int(binary.LittleEndian.Uint32(b[64:])) + pageEntries - 1) / pageEntries
	if index := pageBytes * (1 + pages); len(b) >= index {
		binary.LittleEndian.PutUint32(b[68:], checksum(0, b[index:]))
		var sum uint32
		for n := pageBytes; n < index; n += pageBytes {
			putSum(b[n:][:pageBytes], seed(testID))
			sum = checksum(sum, b[n:][:pageBytes])
		}
		binary.LittleEndian.PutUint32(b[72:], sum)
	}
	putSum(b[:pageBytes], 0)
}

// FuzzTable: a table that is accepted has extents in order and inside of the data, and finds each of them.
func FuzzTable(f *testing.F) {
	for _, count := range []int{0, 1, pageEntries + 1} {
		r := rand.New(rand.NewPCG(1, 2))
		d := newDisk(r)
		extents, dataBytes := someExtents(r, count, 50)
		must(f, create(d, testID, dataBytes, slices.Values(extents)))
		f.Add(contents(d, ExtentsName), int64(3), int64(70))
	}
	f.Fuzz(func(t *testing.T, b []byte, from, to int64) {
		b = slices.Clone(b)
		sumTable(b)
		table, err := openTable(memory{bytes.NewReader(b)}, testID)
		if err != nil {
			return
		}
		if first, end, err := table.covering(from, to); err == nil && (first < 0 || first > end || end > table.head.count) {
			t.Errorf("covering %d to %d: extents %d to %d of %d", from, to, first, end, table.head.count)
		}
		if err := table.check(); err != nil {
			if !errors.Is(err, ErrUnusable) {
				t.Errorf("check: %v", err)
			}
			return
		}
		list, err := table.extents(0, table.head.count)
		must(t, err)
		var after int64
		for i, e := range list {
			if e.Offset < after || e.Length == 0 || e.End() > table.head.dataBytes {
				t.Fatalf("extent %d: %+v", i, e)
			}
			if first, end, err := table.covering(e.Offset, e.End()); first != i || end != i+1 || err != nil {
				t.Fatalf("extent %d is found as %d to %d: %v", i, first, end, err)
			}
			after = e.End()
		}
	})
}

// FuzzRecord: a record that is accepted says something of extents that exist only.
func FuzzRecord(f *testing.F) {
	const count = groupLength + 70
	head := recordHead{id: testID, dataBytes: 1 << 30, count: count, tableSum: 7}
	d := newDisk(rand.New(rand.NewPCG(1, 2)))
	empty, err := d.create(PresentName)
	must(f, err)
	must(f, createRecord(empty, head))
	f.Add(contents(d, PresentName), true)
	r, _, err := openRecord(d, head)
	must(f, err)
	must(f, r.add(newBitmap(count), []written{{3, 10}, {groupLength + 69, 10}}))
	f.Add(contents(d, PresentName), true)
	f.Add(contents(d, PresentName), false)
	f.Fuzz(func(t *testing.T, b []byte, sums bool) {
		b = slices.Clone(b)
		if sums && len(b) >= pageBytes {
			putSum(b[:pageBytes], 0)
			for n := pageBytes; n+pageBytes <= len(b); n += pageBytes {
				putSum(b[n:][:pageBytes], seed(testID))
			}
		}
		d := newDisk(rand.New(rand.NewPCG(1, 2)))
		file, err := d.create(PresentName)
		must(t, err)
		_, err = file.WriteAt(b, 0)
		must(t, err)
		r, lost, err := openRecord(d, head)
		must(t, err)
		if r == nil {
			if lost == nil {
				t.Error("no record and no reason")
			}
			return
		}
		set := newBitmap(count)
		n := r.load(set)
		if n > count || n < 0 {
			t.Errorf("%d of %d extents", n, count)
		}
		for i := count; i < 64*len(set); i++ {
			if set.has(i) {
				t.Errorf("extent %d of %d is present", i, count)
			}
		}
		must(t, r.add(set, []written{{1, 1}}))
	})
}
