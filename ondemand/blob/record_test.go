package blob

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestLostRecord: a record that is of no use makes extents absent, tells, and is replaced.
func TestLostRecord(t *testing.T) {
	other := t.TempDir()
	must(t, Create(other, testID, 1<<20, slices.Values([]Extent{{Length: 5}})))
	for name, breakIt := range map[string]func(path string) error{
		"missing":  os.Remove,
		"empty":    func(path string) error { return os.Truncate(path, 0) },
		"short":    func(path string) error { return os.Truncate(path, pageBytes) },
		"header":   func(path string) error { return flip(filepath.Dir(path), PresentName, 1) },
		"instance": func(path string) error { return flip(filepath.Dir(path), PresentName, 20) },
		"foreign":  func(path string) error { return os.Rename(filepath.Join(other, PresentName), path) },
	} {
		t.Run(name, func(t *testing.T) {
			b, extents, dir := newBlob(t, 100, 50)
			fill(t, b, extents, 1, 2, 3)
			must(t, b.Close())
			must(t, breakIt(filepath.Join(dir, PresentName)))

			b = reopen(t, dir)
			if b.Lost() == nil || b.Progress().PresentExtents != 0 || b.NextAbsent(0, 100) != 0 {
				t.Fatalf("lost: %v; %+v", b.Lost(), b.Progress())
			}
			fill(t, b, extents, 4)
			must(t, b.Close())
			b = reopen(t, dir)
			if b.Lost() != nil || checkPresent(t, b, extents) != 1 {
				t.Errorf("the record that replaced it: lost %v, %+v", b.Lost(), b.Progress())
			}
		})
	}
}

// TestDamagedSlots: one slot that is damaged costs the last batch at most, two cost their group and nothing else.
func TestDamagedSlots(t *testing.T) {
	const count = groupLength + 10
	b, extents, dir := newBlob(t, count, 2)
	fill(t, b, extents, 1, groupLength+1)
	must(t, b.Flush())
	fill(t, b, extents, 2, groupLength+2)
	must(t, b.Flush())
	newest := b.record.groups[0].slot
	must(t, b.Close())

	must(t, flip(dir, PresentName, pageBytes*int64(1+newest)+100))
	b = reopen(t, dir)
	if b.Lost() != nil || !b.Present(1) || b.Present(2) || !b.Present(groupLength+2) {
		t.Errorf("newest slot damaged: lost %v; present %t %t %t", b.Lost(), b.Present(1), b.Present(2), b.Present(groupLength+2))
	}
	must(t, b.Close())

	must(t, flip(dir, PresentName, pageBytes*int64(2-newest)+100))
	b = reopen(t, dir)
	if b.Lost() == nil || b.Present(1) || !b.Present(groupLength+1) {
		t.Errorf("both slots damaged: lost %v; present %t %t", b.Lost(), b.Present(1), b.Present(groupLength+1))
	}
	fill(t, b, extents, 3)
	must(t, b.Close())
	b = reopen(t, dir)
	if b.Lost() != nil || checkPresent(t, b, extents) != 3 {
		t.Errorf("after the next batch: lost %v, %+v", b.Lost(), b.Progress())
	}
	checkProgress(t, b, extents)
}

// TestSlotOfAnother: a page that belongs to another instance or group is no slot.
func TestSlotOfAnother(t *testing.T) {
	h := recordHead{id: testID, dataBytes: 1 << 20, count: 100}
	good := encodeSlot(h, 0, 5, 10, []uint64{2, 0})
	if s, err := parseSlot(h, 0, good); err != nil || s.sequence != 5 || s.bytes != 10 || s.bits[0] != 2 {
		t.Errorf("slot %+v, %v", s, err)
	}
	if _, err := parseSlot(h, 1, good); err == nil {
		t.Error("a slot of another group was taken")
	}
	h.id[0]++
	if _, err := parseSlot(h, 0, good); err == nil {
		t.Error("a slot of another instance was taken")
	}
	h.id[0]--
	for name, bad := range map[string][]byte{
		"bits behind the last extent": encodeSlot(h, 0, 5, 10, []uint64{0, 1 << 36}),
		"more bytes than data":        encodeSlot(h, 0, 5, 1<<20+1, nil),
		"negative":                    encodeSlot(h, 0, 5, -1, nil),
	} {
		if _, err := parseSlot(h, 0, bad); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestBitmap(t *testing.T) {
	const n = 300
	b, want := newBitmap(n), make([]bool, n)
	r := rand.New(rand.NewPCG(1, 1))
	for range 3000 {
		i := r.IntN(n)
		if want[i] = r.IntN(10) > 0; want[i] {
			b.set(i)
		} else {
			b.clear(i)
		}
		if b.has(i) != want[i] {
			t.Fatalf("%d is %t", i, b.has(i))
		}
		first := r.IntN(n + 1)
		end := first + r.IntN(n+1-first)
		next := first
		for next < end && want[next] {
			next++
		}
		if got := b.nextClear(first, end); got != next {
			t.Fatalf("next clear from %d to %d: %d, want %d", first, end, got, next)
		}
	}
}
