// Package blob keeps the data blob of a lazy layer instance while it is filled: a sparse file, the table of the extents that can be
// fetched into it, and a durable record of those that are there. The engine (package ondemand) calls it; it knows no kernel interface
// but files, and no network.
//
// A blob is three files in the directory of its instance:
//
//	data     the bytes; its length is final from the start; what no extent covers is a hole and reads as zeros
//	extents  the extent table, written once: see table.go
//	present  which extents are in data: see record.go
//
// An extent goes one way only:
//
//	absent ──Write──► present: written, readers of this boot may have it ──Flush──► durable: synced, then recorded
//
// The order is verified (by the caller), written, synced, recorded. So a power cut can lose work but never claims an extent that is not
// there: what was not recorded is absent when the blob is opened again, and fetched again. That holds for the death of the process alone
// too, although its writes are in the page cache: nobody knows whether they reach the disk. Holes tell nothing: a filesystem may have
// allocated blocks whose bytes it never wrote.
//
// What can go wrong, and what it means:
//
//   - present is missing, damaged, of another instance or another table: those extents are absent; Lost says why; the blob works.
//   - extents or data is missing, damaged or of another instance: ErrUnusable; the instance must be made anew.
//   - a write fails (full disk, I/O error): nothing is recorded, the extent stays absent.
//   - a sync of data fails: the kernel tells of lost writes once and may drop the pages, so everything that was not durable is absent
//     again and has to be written again. Until the sync tells, such an extent counts as present.
//
// One process at a time may write a blob. There is no lock: the daemon holds one on its root. Should two write all the same, data stays
// right, for both write the same bytes, and present can lose extents but not gain wrong ones, as long as each has opened data itself:
// with one open file (a dup, or one handed over through a socket) the kernel tells only one of them that a write was lost. So the
// keeper, which holds such a file for the daemon's successor, neither syncs nor records; its journal of events in flight has nothing to
// do with present. Others may read present at any time, for one slot of each group is always whole; but not by Open, which may replace it.
package blob

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
)

// ErrUnusable says that a blob cannot be used any more and its instance has to be made anew.
var ErrUnusable = errors.New("the layer instance must be made anew")

// Names of the files of a blob in its directory.
const (
	DataName    = "data"
	ExtentsName = "extents"
	PresentName = "present"
)

// Blob is a data blob that is open. It is safe for concurrent use. Extents are named by their place in the table, from 0 to Count-1;
// Present, Durable and NextAbsent panic when they are asked for another.
type Blob struct {
	name   string // for messages: the directory
	table  *table
	data   file
	handle *os.File // what data is
	closes []func() error
	syncer *Syncer
	lost   error

	present bitmap // changed with mu held, read without
	durable bitmap // changed with flushing held, read without

	mu       sync.Mutex
	pending  []written // present, not durable, and not in the hands of a Flush
	unsynced int64     // bytes of pending
	failures int       // how often a sync of data has failed
	progress Progress

	flushing sync.Mutex // held by who syncs and records; taken before mu
	record   *record    // guarded by flushing; nil once the blob is closed
}

// Options of Open. The zero value is a blob that opens its data itself and is synced by Flush only.
type Options struct {
	// Data is the data blob, open for reading and writing. One that fanotify is to watch must be opened before it is marked: what is
	// opened later raises events with every write, for which this process would wait. It stays the caller's: Close does not close it.
	Data *os.File
	// Syncer flushes the blob some time after it was written to.
	Syncer *Syncer
}

// Open opens the blob in dir, which was made for the instance id. An error that is ErrUnusable says that no other attempt will do better.
func Open(dir string, id [32]byte, o Options) (*Blob, error) {
	b, err := open(osDirectory(dir), dir, id, o)
	if err != nil {
		return nil, fmt.Errorf("open blob %s: %w", dir, err)
	}
	return b, nil
}

func open(dir directory, name string, id [32]byte, o Options) (_ *Blob, err error) {
	b := &Blob{name: name, syncer: o.Syncer}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.closeFiles())
		}
	}()
	extents, err := b.openFile(dir, ExtentsName, false)
	if err != nil {
		return nil, err
	}
	if b.table, err = openTable(extents, id); err != nil {
		return nil, fmt.Errorf("%s: %w", ExtentsName, err)
	}
	if err := b.openData(dir, o.Data); err != nil {
		return nil, err
	}
	if err := b.openRecord(dir); err != nil {
		return nil, err
	}
	return b, nil
}

// openFile opens a file without which the blob is of no use, and has it closed with the blob.
func (b *Blob) openFile(dir directory, name string, write bool) (file, error) {
	f, err := dir.open(name, write)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", err, ErrUnusable)
	}
	if err != nil {
		return nil, err
	}
	b.closes = append(b.closes, f.Close)
	return f, nil
}

func (b *Blob) openData(dir directory, given *os.File) (err error) {
	if given != nil {
		b.data = osFile{given}
	} else if b.data, err = b.openFile(dir, DataName, true); err != nil {
		return err
	}
	if f, ok := b.data.(osFile); ok {
		b.handle = f.File
	}
	size, err := b.data.size()
	if err != nil {
		return err
	}
	if size != b.table.head.dataBytes {
		return fmt.Errorf("%s has %d bytes, want %d: %w", DataName, size, b.table.head.dataBytes, ErrUnusable)
	}
	return nil
}

// openRecord finds out which extents are present. A record that is of no use is replaced by an empty one.
func (b *Blob) openRecord(dir directory) error {
	head := b.table.recordHead()
	rec, lost, err := openRecord(dir, head)
	if err != nil {
		return err
	}
	if rec == nil {
		if rec, err = replaceRecord(dir, head); err != nil {
			return fmt.Errorf("replace %s, which is of no use (%w): %w", PresentName, lost, err)
		}
	}
	b.record, b.lost = rec, lost
	b.closes = append(b.closes, rec.f.Close)
	b.present, b.durable = newBitmap(head.count), newBitmap(head.count)
	b.progress = Progress{Extents: head.count, Bytes: b.table.head.extentBytes}
	for g := range rec.groups {
		b.progress.DurableBytes += rec.groups[g].bytes
	}
	b.progress.DurableExtents = rec.load(b.durable)
	b.present.copyFrom(b.durable)
	b.progress.PresentExtents, b.progress.PresentBytes = b.progress.DurableExtents, b.progress.DurableBytes
	return nil
}

// Lost says why extents that may have been present are not, if the record of them was of no use when the blob was opened. It is
// nothing to stop for: they are fetched again.
func (b *Blob) Lost() error { return b.lost }

// File is the data blob, for whoever has to mark, mount or read it. It is closed with the blob unless it came with Options.
func (b *Blob) File() *os.File { return b.handle }

// Size is the length of the data blob in bytes.
func (b *Blob) Size() int64 { return b.table.head.dataBytes }

// Count is the number of extents.
func (b *Blob) Count() int { return b.table.head.count }

// Covering returns the extents that overlap the length bytes at offset: those from first up to, and without, end. What of the range they
// do not cover is zeros; what is outside of the blob is ignored. It reads one or two pages of the table, which the kernel caches.
func (b *Blob) Covering(offset, length int64) (first, end int, err error) {
	to := b.Size()
	if length < to-offset {
		to = offset + length
	}
	if first, end, err = b.table.covering(offset, to); err != nil {
		return 0, 0, b.tableError(err)
	}
	return first, end, nil
}

// Extents returns the extents from first up to, and without, end.
func (b *Blob) Extents(first, end int) ([]Extent, error) {
	list, err := b.table.extents(first, end)
	if err != nil {
		return nil, b.tableError(err)
	}
	return list, nil
}

// CheckTable reads the whole extent table. Open and Covering check what they read only.
func (b *Blob) CheckTable() error {
	if err := b.table.check(); err != nil {
		return b.tableError(err)
	}
	return nil
}

func (b *Blob) tableError(err error) error {
	return fmt.Errorf("blob %s: %s: %w", b.name, ExtentsName, err)
}

// Present says whether extent i may be read now. It takes no lock.
func (b *Blob) Present(i int) bool { return b.present.has(i) }

// Durable says whether extent i will be present after a power cut. What an earlier process recorded is certain once a Flush has returned:
// that process may have died before its sync. It takes no lock.
func (b *Blob) Durable(i int) bool { return b.durable.has(i) }

// NextAbsent returns the first extent from first up to, and without, end that is not present, or end. It takes no lock.
func (b *Blob) NextAbsent(first, end int) int { return b.present.nextClear(first, end) }

// Close flushes the blob and closes its files, whatever Flush says. It may be called again. Nothing may be written during and after it.
func (b *Blob) Close() error {
	b.flushing.Lock()
	defer b.flushing.Unlock()
	if b.record == nil {
		return nil
	}
	err := b.flush()
	b.record = nil
	if b.syncer != nil {
		b.syncer.drop(b)
	}
	return errors.Join(err, b.closeFiles())
}

func (b *Blob) closeFiles() error {
	var errs []error
	for _, f := range b.closes {
		errs = append(errs, f())
	}
	b.closes = nil
	return errors.Join(errs...)
}
