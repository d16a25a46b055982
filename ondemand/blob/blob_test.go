package blob

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
)

func TestFill(t *testing.T) {
	b, extents, dir := newBlob(t, 200, 9000)
	if b.Present(7) || b.NextAbsent(0, 200) != 0 || b.Progress().Percent() != 0 {
		t.Error("something is present in a new blob")
	}
	fill(t, b, extents, 7, 8, 199)
	if !b.Present(7) || b.Durable(7) {
		t.Error("extent 7 is to be present, and not durable")
	}
	must(t, b.Flush())
	if !b.Durable(7) {
		t.Error("extent 7 is not durable after Flush")
	}
	if got := b.NextAbsent(7, 200); got != 9 {
		t.Errorf("next absent extent %d, want 9", got)
	}
	fill(t, b, extents, 50)
	must(t, b.Close())
	must(t, b.Close())

	b = reopen(t, dir)
	if got := checkPresent(t, b, extents); got != 4 || b.Lost() != nil {
		t.Errorf("%d extents present after Close, want 4 (lost: %v)", got, b.Lost())
	}
	if err := b.Complete(); !errors.Is(err, ErrIncomplete) {
		t.Errorf("complete: %v", err)
	}
	for i := range extents {
		fill(t, b, extents, i, i)
	}
	must(t, b.Complete())
	checkPresent(t, b, extents)
	checkProgress(t, b, extents)
	if b.Progress().Percent() != 100 || b.NextAbsent(0, 200) != 200 {
		t.Error("not complete")
	}
	fi, err := os.Stat(filepath.Join(dir, DataName))
	must(t, err)
	if fi.Size() != b.Size() {
		t.Errorf("data has %d bytes, want %d", fi.Size(), b.Size())
	}
}

// TestUnflushed: what was written and not recorded is absent for the next process.
func TestUnflushed(t *testing.T) {
	b, extents, dir := newBlob(t, 10, 100)
	fill(t, b, extents, 1)
	must(t, b.Flush())
	fill(t, b, extents, 2)
	next := reopen(t, dir)
	if !next.Present(1) || next.Present(2) {
		t.Errorf("present: 1 %t, 2 %t; want only 1", next.Present(1), next.Present(2))
	}
}

func TestEmpty(t *testing.T) {
	dir := t.TempDir()
	must(t, Create(dir, testID, 0, func(func(Extent) bool) {}))
	b := reopen(t, dir)
	must(t, b.Complete())
	first, end, err := b.Covering(0, 4096)
	if first != end || err != nil {
		t.Errorf("covering: %d to %d, %v", first, end, err)
	}
	if b.Progress().Percent() != 100 {
		t.Error("an empty blob is not complete")
	}
	cells, err := b.Map(3)
	if !slices.Equal(cells, []float64{1, 1, 1}) || err != nil {
		t.Errorf("map %v, %v", cells, err)
	}
}

// TestLargeExtent: an extent that is written in several pieces, at an odd place.
func TestLargeExtent(t *testing.T) {
	dir := t.TempDir()
	extents := []Extent{{Offset: 5, Length: 2*writeBytes + 7}}
	must(t, Create(dir, testID, 1<<20, slices.Values(extents)))
	b := reopen(t, dir)
	fill(t, b, extents, 0)
	must(t, b.Complete())
	checkPresent(t, b, extents)
}

// TestGivenData: the blob writes through the file it was given, opens none, and leaves it open.
func TestGivenData(t *testing.T) {
	_, extents, dir := newBlob(t, 10, 100)
	f, err := os.OpenFile(filepath.Join(dir, DataName), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	must(t, os.Remove(filepath.Join(dir, DataName)))
	b, err := Open(dir, testID, Options{Data: f})
	must(t, err)
	if b.File() != f {
		t.Error("another file than the given one")
	}
	fill(t, b, extents, 3)
	checkPresent(t, b, extents)
	must(t, b.Close())
	if _, err := f.Stat(); err != nil {
		t.Errorf("the given file after Close: %v", err)
	}
}

func TestWriteErrors(t *testing.T) {
	b, extents, dir := newBlob(t, 10, 100)
	if err := b.Write(3, make([]byte, extents[3].Length+1)); err == nil || b.Present(3) {
		t.Errorf("wrong length: %v", err)
	}
	for _, i := range []int{-1, 10} {
		if err := b.Write(i, nil); err == nil {
			t.Errorf("extent %d of 10 was written", i)
		}
	}
	readOnly, err := os.Open(filepath.Join(dir, DataName))
	must(t, err)
	defer readOnly.Close()
	b, err = Open(dir, testID, Options{Data: readOnly})
	must(t, err)
	if err := b.Write(3, contentOf(3, extents[3])); !errors.Is(err, syscall.EBADF) || b.Present(3) {
		t.Errorf("write through a file that is open for reading: %v", err)
	}
}

// newDiskBlob is newBlob on a disk that can fail.
func newDiskBlob(t *testing.T, count int) (b *Blob, d *disk, extents []Extent) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	d = newDisk(r)
	extents, dataBytes := someExtents(r, count, 500)
	must(t, create(d, testID, dataBytes, slices.Values(extents)))
	must(t, d.sync())
	b, err := open(d, "test", testID, Options{})
	must(t, err)
	return b, d, extents
}

func TestFullDisk(t *testing.T) {
	b, d, extents := newDiskBlob(t, 10)
	fill(t, b, extents, 1)
	d.fullAfter = 0
	if err := b.Write(2, contentOf(2, extents[2])); !errors.Is(err, syscall.ENOSPC) || b.Present(2) {
		t.Errorf("write on a full disk: %v", err)
	}
	if err := b.Flush(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("record on a full disk: %v", err)
	}
	if !b.Present(1) || b.Durable(1) {
		t.Error("extent 1 is to be present, and not durable")
	}
	d.fullAfter = -1
	must(t, b.Flush())
	if !b.Durable(1) || b.Durable(2) {
		t.Error("only extent 1 is to be durable")
	}
	checkProgress(t, b, extents)

	d.spoil(PresentName)
	d.fullAfter = 0
	if _, err := open(d, "test", testID, Options{}); !errors.Is(err, syscall.ENOSPC) || errors.Is(err, ErrUnusable) {
		t.Errorf("open with a record that cannot be replaced: %v", err)
	}
}

// TestLostWrites: after a sync that failed everything that was not durable is absent.
func TestLostWrites(t *testing.T) {
	b, d, extents := newDiskBlob(t, 10)
	fill(t, b, extents, 1)
	must(t, b.Flush())
	fill(t, b, extents, 2, 3)
	d.syncFails = 1
	if err := b.Flush(); !errors.Is(err, syscall.EIO) {
		t.Errorf("flush: %v", err)
	}
	d.syncFails = 0
	if !b.Present(1) || b.Present(2) || b.Present(3) {
		t.Error("only extent 1 is to be present")
	}
	checkProgress(t, b, extents)
	must(t, b.Flush())
	fill(t, b, extents, 2, 3)
	must(t, b.Flush())
	d.restart(true)
	b, err := open(d, "test", testID, Options{})
	must(t, err)
	if got := checkPresent(t, b, extents); got != 3 {
		t.Errorf("%d extents present, want 3", got)
	}
}

// failingSync is a data file whose sync calls do, and fails.
type failingSync struct {
	file
	do func()
}

func (f failingSync) datasync() error { f.do(); return syscall.EIO }

// failingWrite is a data file that calls do after it has written.
type failingWrite struct {
	file
	do func()
}

func (f failingWrite) WriteAt(b []byte, at int64) (int, error) {
	n, err := f.file.WriteAt(b, at)
	f.do()
	return n, err
}

// TestLostWritesMeanwhile: a sync that fails takes along what was written while it ran, and what is still being written.
func TestLostWritesMeanwhile(t *testing.T) {
	b, _, extents := newDiskBlob(t, 10)
	data := b.data
	fill(t, b, extents, 1)
	b.data = failingSync{data, func() { fill(t, b, extents, 2) }}
	if err := b.Flush(); err == nil || b.Present(1) || b.Present(2) {
		t.Errorf("flush: %v; present: 1 %t, 2 %t", err, b.Present(1), b.Present(2))
	}
	b.data = failingWrite{data, func() { b.forget(nil) }}
	if err := b.Write(3, contentOf(3, extents[3])); !errors.Is(err, errSyncFailed) || b.Present(3) {
		t.Errorf("write while a sync failed: %v", err)
	}
	b.data = data
	fill(t, b, extents, 3)
}

// TestUnusable: what cannot be repaired is told from what may work the next time.
func TestUnusable(t *testing.T) {
	for name, breakIt := range map[string]func(dir string) error{
		"no table":        func(dir string) error { return os.Remove(filepath.Join(dir, ExtentsName)) },
		"empty table":     func(dir string) error { return os.Truncate(filepath.Join(dir, ExtentsName), 0) },
		"short table":     func(dir string) error { return os.Truncate(filepath.Join(dir, ExtentsName), 3*pageBytes) },
		"long table":      func(dir string) error { return os.Truncate(filepath.Join(dir, ExtentsName), 30*pageBytes) },
		"no data":         func(dir string) error { return os.Remove(filepath.Join(dir, DataName)) },
		"short data":      func(dir string) error { return os.Truncate(filepath.Join(dir, DataName), 17) },
		"damaged header":  func(dir string) error { return flip(dir, ExtentsName, 50) },
		"unknown version": func(dir string) error { return flip(dir, ExtentsName, 8) },
		"damaged index":   func(dir string) error { return flip(dir, ExtentsName, 5*pageBytes+3) },
		"wrong magic":     func(dir string) error { return flip(dir, ExtentsName, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			b, _, dir := newBlob(t, 200, 100)
			must(t, b.Close())
			must(t, breakIt(dir))
			_, err := Open(dir, testID, Options{})
			if !errors.Is(err, ErrUnusable) {
				t.Errorf("open: %v", err)
			}
		})
	}
	_, _, dir := newBlob(t, 5, 100)
	if _, err := Open(dir, [32]byte{1}, Options{}); !errors.Is(err, ErrUnusable) {
		t.Errorf("another instance: %v", err)
	}
}

// flip changes a byte of a file.
func flip(dir, name string, at int64) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		return err
	}
	b[0] ^= 0x40
	_, err = f.WriteAt(b, at)
	return err
}

func TestCreateTwice(t *testing.T) {
	_, extents, dir := newBlob(t, 5, 100)
	if err := Create(dir, testID, 1<<20, slices.Values(extents)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create in a directory that has a blob: %v", err)
	}
}

// TestConcurrent: many write the same extents while others flush and look.
func TestConcurrent(t *testing.T) {
	b, extents, dir := newBlob(t, 500, 3000)
	var busy sync.WaitGroup
	for w := range 4 {
		busy.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 0))
			for _, i := range r.Perm(len(extents)) {
				if err := b.Write(i, contentOf(i, extents[i])); err != nil || !b.Present(i) {
					t.Errorf("extent %d: %v; present %t", i, err, b.Present(i))
					return
				}
			}
		})
		busy.Go(func() {
			for b.Progress().PresentExtents < len(extents) && !t.Failed() {
				if err := b.Flush(); err != nil {
					t.Error(err)
				}
				i := b.NextAbsent(0, len(extents))
				if i < len(extents) {
					if first, _, err := b.Covering(extents[i].Offset, 1); first != i || err != nil {
						t.Errorf("extent %d found as %d: %v", i, first, err)
					}
				}
			}
		})
	}
	busy.Wait()
	must(t, b.Complete())
	b = reopen(t, dir)
	if got := checkPresent(t, b, extents); got != len(extents) {
		t.Errorf("%d extents present, want %d", got, len(extents))
	}
}

func TestMap(t *testing.T) {
	dir := t.TempDir()
	extents := []Extent{{Offset: 0, Length: 1000}, {Offset: 1000, Length: 1000}, {Offset: 2500, Length: 500}}
	must(t, Create(dir, testID, 5000, slices.Values(extents)))
	b := reopen(t, dir)
	fill(t, b, extents, 1, 2)
	for _, c := range []struct {
		cells int
		want  []float64
	}{
		{1, []float64{0.6}},
		{5, []float64{0, 1, 1, 1, 1}},
		{10, []float64{0, 0, 1, 1, 1, 1, 1, 1, 1, 1}},
		{2, []float64{0.5, 1}},
	} {
		got, err := b.Map(c.cells)
		must(t, err)
		if !slices.EqualFunc(got, c.want, func(a, b float64) bool { return max(a-b, b-a) < 1e-9 }) {
			t.Errorf("%d cells: %v, want %v", c.cells, got, c.want)
		}
	}
}

func TestPercent(t *testing.T) {
	for _, c := range []struct {
		p    Progress
		want int
	}{
		{Progress{}, 100},
		{Progress{Extents: 2, Bytes: 10}, 0},
		{Progress{Extents: 2, Bytes: 10, PresentExtents: 1, PresentBytes: 5}, 50},
		{Progress{Extents: 2, Bytes: 1e6, PresentExtents: 1, PresentBytes: 1e6 - 1}, 99},
		{Progress{Extents: 2, Bytes: 10, PresentExtents: 2, PresentBytes: 10}, 100},
	} {
		if got := c.p.Percent(); got != c.want {
			t.Errorf("%+v: %d, want %d", c.p, got, c.want)
		}
	}
}
