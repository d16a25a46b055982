package blob

import (
	"errors"
	"fmt"
)

// ErrIncomplete says that extents are missing.
var ErrIncomplete = errors.New("extents are missing")

// Flush makes durable every extent that was present when it was called, also by what an earlier process recorded. A Syncer calls it in time.
// After an error of the record nothing has changed, and the next Flush tries again; after an error of the data no extent is present that
// is not durable.
func (b *Blob) Flush() error {
	b.flushing.Lock()
	defer b.flushing.Unlock()
	if b.record == nil {
		return nil // Close has flushed it
	}
	if err := b.flush(); err != nil {
		return err
	}
	if err := b.record.settle(b.durable); err != nil {
		return fmt.Errorf("sync %s of blob %s: %w", PresentName, b.name, err)
	}
	return nil
}

// Complete makes the whole blob durable. Then, and not before, the blob may be used without anybody who watches it. An extent that is
// missing is ErrIncomplete.
func (b *Blob) Complete() error {
	if err := b.Flush(); err != nil {
		return err
	}
	if missing := b.Count() - b.Progress().DurableExtents; missing > 0 {
		return fmt.Errorf("complete blob %s: %d of %d %w", b.name, missing, b.Count(), ErrIncomplete)
	}
	return nil
}

// flush is called with flushing held.
func (b *Blob) flush() error {
	batch := b.takePending()
	if len(batch) == 0 {
		return nil
	}
	if err := b.data.datasync(); err != nil {
		b.forget(batch)
		return fmt.Errorf("sync data of blob %s: %w", b.name, err)
	}
	if err := b.record.add(b.durable, batch); err != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.addPending(batch...)
		return fmt.Errorf("record %d extents of blob %s: %w", len(batch), b.name, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range batch {
		b.durable.set(e.extent)
		b.progress.DurableExtents++
		b.progress.DurableBytes += e.bytes
	}
	return nil
}

func (b *Blob) takePending() []written {
	b.mu.Lock()
	defer b.mu.Unlock()
	batch := b.pending
	b.pending, b.unsynced = nil, 0
	return batch
}

// forget makes absent what a sync that failed may have lost: the batch, and what was written since it was taken, for the kernel may have
// tried, and lost, that too. Extents that are being written see that failures has changed.
func (b *Blob) forget(batch []written) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures++
	for _, e := range append(batch, b.pending...) {
		b.present.clear(e.extent)
		b.progress.PresentExtents--
		b.progress.PresentBytes -= e.bytes
	}
	b.pending, b.unsynced = nil, 0
}
