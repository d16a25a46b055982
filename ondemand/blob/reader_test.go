package blob

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// reads expects that a reader has exactly the extents of a list, and their bytes.
func reads(t *testing.T, r *Reader, extents []Extent, present ...int) {
	t.Helper()
	if r.Count() != len(extents) {
		t.Errorf("%d extents, want %d", r.Count(), len(extents))
	}
	list, err := r.Extents(0, r.Count())
	must(t, err)
	for i, x := range list {
		if has := slices.Contains(present, i); r.Present(i) != has {
			t.Errorf("extent %d is present: %v", i, !has)
		} else if has {
			got := make([]byte, x.Length)
			if err := r.Read(x, got); err != nil || !slices.Equal(got, contentOf(i, extents[i])) {
				t.Errorf("extent %d: other bytes, %v", i, err)
			}
		}
	}
}

// TestReader: it sees what is written while it is open, and goes on when the blob is closed.
func TestReader(t *testing.T) {
	b, extents, dir := newBlob(t, 3*pageEntries, 500)
	fill(t, b, extents, 0, 7)
	r, err := b.Reader()
	must(t, err)
	defer r.Close()
	reads(t, r, extents, 0, 7)
	fill(t, b, extents, 1)
	must(t, b.Close())
	must(t, os.RemoveAll(dir))
	reads(t, r, extents, 0, 1, 7)
	must(t, r.Close())
	must(t, r.Close())
	if _, err := r.Extents(0, 1); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func TestReaderOfClosedBlob(t *testing.T) {
	b, _, _ := newBlob(t, 1, 500)
	must(t, b.Close())
	if _, err := b.Reader(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("error %v", err)
	}
}

// TestOpenReader: a blob that has everything is read without its record, which is left alone.
func TestOpenReader(t *testing.T) {
	b, extents, dir := newBlob(t, 100, 500)
	all := make([]int, len(extents))
	for i := range all {
		all[i] = i
	}
	fill(t, b, extents, all...)
	must(t, b.Complete())
	must(t, b.Close())
	must(t, os.Remove(filepath.Join(dir, PresentName)))
	r, err := OpenReader(dir, testID)
	must(t, err)
	defer r.Close()
	reads(t, r, extents, all...)
	if _, err := os.Stat(filepath.Join(dir, PresentName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the record: %v", err)
	}
	data, err := os.OpenFile(filepath.Join(dir, DataName), os.O_WRONLY, 0)
	must(t, err)
	_, err = data.WriteAt([]byte{0}, extents[5].Offset)
	must(t, errors.Join(err, data.Close()))
	if err := r.Read(extents[5], make([]byte, extents[5].Length)); !errors.Is(err, ErrDamaged) {
		t.Errorf("a damaged extent: %v", err)
	}
	if _, err := OpenReader(dir, [32]byte{}); !errors.Is(err, ErrUnusable) {
		t.Errorf("of another instance: %v", err)
	}
	if _, err := OpenReader(t.TempDir(), testID); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no blob: %v", err)
	}
}

// TestAt: an extent is found at its place, and at no other.
func TestAt(t *testing.T) {
	b, extents, _ := newBlob(t, 3*pageEntries, 500)
	r, err := b.Reader()
	must(t, err)
	defer r.Close()
	for i, x := range extents {
		for _, at := range []func(int64, uint32) (int, error){b.At, r.At} {
			if got, err := at(x.Offset, x.Length); got != i || err != nil {
				t.Fatalf("extent %d: %d, %v", i, got, err)
			}
			for _, other := range []Extent{{Offset: x.Offset + 1, Length: x.Length}, {Offset: x.Offset - 1, Length: x.Length},
				{Offset: x.Offset, Length: x.Length + 1}, {Offset: x.Offset, Length: x.Length - 1}} {
				known := slices.ContainsFunc(extents, func(e Extent) bool { return e.Offset == other.Offset && e.Length == other.Length })
				if got, err := at(other.Offset, other.Length); got != -1 && !known || err != nil {
					t.Fatalf("%d bytes at %d: extent %d, %v", other.Length, other.Offset, got, err)
				}
			}
		}
	}
	for _, offset := range []int64{-1, b.Size(), MaxDataBytes} {
		if got, err := b.At(offset, 1); got != -1 || err != nil {
			t.Errorf("at %d: extent %d, %v", offset, got, err)
		}
	}
	none, _, _ := newBlob(t, 0, 1)
	if got, err := none.At(0, 1); got != -1 || err != nil {
		t.Errorf("no extents: %d, %v", got, err)
	}
}
