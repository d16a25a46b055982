package blob

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestPowerCuts fills blobs on a disk whose power is cut, or whose process is killed, after any number of operations, several times in a
// row, while writes and syncs fail and the record is damaged at times. Whatever is present after that has the right bytes, and what was
// said to be durable is present.
func TestPowerCuts(t *testing.T) {
	seeds := 1000
	if testing.Short() {
		seeds = 200
	}
	for seed := range seeds {
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { powerCuts(t, uint64(seed)) }) {
			return
		}
	}
}

func powerCuts(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0))
	d := newDisk(r)
	extents, dataBytes := someExtents(r, 1+r.IntN(150), 600)
	must(t, create(d, testID, dataBytes, slices.Values(extents)))
	must(t, d.sync())
	promised := map[int]bool{}
	spoilt := false
	for range 6 {
		if r.IntN(10) == 0 {
			if r.IntN(2) == 0 {
				d.spoil(PresentName)
			} else {
				d.lose(PresentName)
			}
			clear(promised)
			spoilt = true
		}
		d.steps = r.IntN(200)
		if r.IntN(2) == 0 {
			d.syncFails, d.writeFails = 0.1, 0.05
		}
		live(r, d, extents, promised)
		d.syncFails, d.writeFails = 0, 0
		d.restart(r.IntN(3) > 0)

		b, err := open(d, "test", testID, Options{})
		must(t, err)
		if b.Lost() != nil && (!spoilt || len(promised) > 0) {
			t.Fatal(b.Lost())
		}
		checkPresent(t, b, extents)
		checkProgress(t, b, extents)
		for i := range promised {
			if !b.Present(i) || !b.Durable(i) {
				t.Fatalf("extent %d was durable and is not present", i)
			}
		}
	}
}

// live is one life of a process: it writes and flushes until the power is cut, and adds what became durable to promised.
func live(r *rand.Rand, d *disk, extents []Extent, promised map[int]bool) {
	b, err := open(d, "test", testID, Options{})
	if err != nil {
		return
	}
	for !d.off {
		for range r.IntN(8) {
			i := r.IntN(len(extents))
			_ = b.Write(i, contentOf(i, extents[i])) // a failed one leaves the extent absent
		}
		if err := b.Flush(); err == nil {
			for i := range extents {
				if b.Durable(i) {
					promised[i] = true
				}
			}
		}
		if b.Complete() == nil {
			return
		}
	}
}

// TestSettle: what a process reads of a record may not be on the disk, although the kernel thinks so. It must not overwrite the slot that is,
// at whatever moment the power is cut.
func TestSettle(t *testing.T) {
	for steps := range 12 {
		for seed := range uint64(20) { // writes that are torn at different bytes
			b, d, extents := newDiskBlob(t, 10)
			d.rand = rand.New(rand.NewPCG(seed, uint64(steps)))
			fill(t, b, extents, 1)
			must(t, b.Flush())
			fill(t, b, extents, 2)
			b.record.f = failingSync{b.record.f, func() { d.names[PresentName].unsynced = nil }}
			if err := b.Flush(); err == nil {
				t.Fatal("the sync is to fail")
			}
			b, err := open(d, "test", testID, Options{})
			must(t, err)
			fill(t, b, extents, 3)
			d.steps = steps
			err = b.Flush()
			d.restart(true)
			next, openErr := open(d, "test", testID, Options{})
			must(t, openErr)
			if next.Lost() != nil || !next.Present(1) || err == nil && !(next.Present(2) && next.Present(3)) {
				t.Fatalf("cut after %d steps: lost %v; present: 1 %t, 2 %t, 3 %t; flush: %v",
					steps, next.Lost(), next.Present(1), next.Present(2), next.Present(3), err)
			}
			checkPresent(t, next, extents)
		}
	}
}

func checkProgress(t *testing.T, b *Blob, extents []Extent) {
	t.Helper()
	want := Progress{Extents: len(extents)}
	for i, e := range extents {
		want.Bytes += int64(e.Length)
		if b.Present(i) {
			want.PresentExtents++
			want.PresentBytes += int64(e.Length)
		}
		if b.Durable(i) {
			want.DurableExtents++
			want.DurableBytes += int64(e.Length)
		}
	}
	if got := b.Progress(); got != want {
		t.Fatalf("progress %+v, want %+v", got, want)
	}
}
