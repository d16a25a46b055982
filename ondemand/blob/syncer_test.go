package blob

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// withSyncer runs do in a bubble, with a Syncer that runs and a blob that names it, and returns how many flushes failed.
func withSyncer(t *testing.T, do func(b *Blob, d *disk, extents []Extent, stop func())) (failures int) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSyncer(func(*Blob, error) { failures++ })
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { s.Run(ctx); close(ended) }()
		b, d, extents := newDiskBlob(t, 10)
		b.syncer = s
		do(b, d, extents, func() { cancel(); <-ended })
		cancel()
		<-ended
	})
	return failures
}

func TestSyncer(t *testing.T) {
	withSyncer(t, func(b *Blob, _ *disk, extents []Extent, stop func()) {
		fill(t, b, extents, 1)
		time.Sleep(syncDelay / 2)
		fill(t, b, extents, 2)
		if b.Durable(1) {
			t.Error("synced at once")
		}
		time.Sleep(syncDelay / 2)
		synctest.Wait()
		if !b.Durable(1) || !b.Durable(2) {
			t.Error("not synced after the delay")
		}
		fill(t, b, extents, 3)
		stop()
		if !b.Durable(3) {
			t.Error("not synced at the end")
		}
	})
}

// TestSyncerHurries: much data is not kept waiting.
func TestSyncerHurries(t *testing.T) {
	withSyncer(t, func(b *Blob, _ *disk, extents []Extent, _ func()) {
		fill(t, b, extents, 1)
		b.syncer.note(b, syncBytes)
		synctest.Wait()
		if !b.Durable(1) {
			t.Error("not synced at once")
		}
	})
}

// TestSyncerTriesAgain: a record that could not be written is written later, and not with every write.
func TestSyncerTriesAgain(t *testing.T) {
	failures := withSyncer(t, func(b *Blob, d *disk, extents []Extent, _ func()) {
		d.fullAfter = int(extents[1].Length)
		fill(t, b, extents, 1)
		time.Sleep(syncDelay)
		synctest.Wait()
		d.fullAfter = -1
		fill(t, b, extents, 2)
		b.syncer.note(b, syncBytes)
		time.Sleep(retryDelay - time.Second)
		synctest.Wait()
		if b.Durable(1) {
			t.Error("tried again at once")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if !b.Durable(1) || !b.Durable(2) {
			t.Error("not tried again")
		}
	})
	if failures != 1 {
		t.Errorf("%d failures, want 1", failures)
	}
}

func TestSyncerDropsClosed(t *testing.T) {
	withSyncer(t, func(b *Blob, _ *disk, extents []Extent, _ func()) {
		fill(t, b, extents, 1)
		must(t, b.Close())
		if len(b.syncer.all()) != 0 {
			t.Error("a closed blob waits to be synced")
		}
	})
}
