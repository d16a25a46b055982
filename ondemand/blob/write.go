package blob

import (
	"errors"
	"fmt"
)

// writeBytes is the largest single write. Filesystems with large folios take one as a piece of contiguous memory, and large pieces are
// slow to get.
const writeBytes = 128 << 10

// written is an extent that is present and waits to become durable.
type written struct {
	extent int
	bytes  int64
}

// Write puts the bytes of extent i, which the caller has verified, into the blob. When it returns nil, the extent is present. Several
// extents may be written at once. Writing an extent that is present does nothing; two who write the same absent one do no harm.
//
// After an error the extent is absent, whatever reached the file. On a full disk the error is ENOSPC.
func (b *Blob) Write(i int, bytes []byte) error {
	if i >= 0 && i < b.Count() && b.present.has(i) {
		return nil
	}
	list, err := b.Extents(i, i+1)
	if err != nil {
		return err
	}
	if err := b.write(i, list[0], bytes); err != nil {
		return fmt.Errorf("write extent %d (%d bytes at %d) of blob %s: %w", i, list[0].Length, list[0].Offset, b.name, err)
	}
	return nil
}

// errSyncFailed says that a sync failed while an extent was written. It may be this write that was lost.
var errSyncFailed = errors.New("the disk lost writes meanwhile")

func (b *Blob) write(i int, e Extent, bytes []byte) error {
	if len(bytes) != int(e.Length) {
		return fmt.Errorf("%d bytes given", len(bytes))
	}
	b.mu.Lock()
	before := b.failures
	b.mu.Unlock()
	for n := 0; n < len(bytes); n += writeBytes {
		if _, err := b.data.WriteAt(bytes[n:min(n+writeBytes, len(bytes))], e.Offset+int64(n)); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures != before {
		return errSyncFailed
	}
	if b.present.has(i) {
		return nil
	}
	b.present.set(i)
	b.progress.PresentExtents++
	b.progress.PresentBytes += int64(e.Length)
	b.addPending(written{i, int64(e.Length)})
	return nil
}

// addPending is called with mu held.
func (b *Blob) addPending(e ...written) {
	b.pending = append(b.pending, e...)
	for _, e := range e {
		b.unsynced += e.bytes
	}
	if b.syncer != nil && len(b.pending) > 0 {
		b.syncer.note(b, b.unsynced)
	}
}
