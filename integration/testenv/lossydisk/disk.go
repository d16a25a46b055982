// Package lossydisk is a block device whose power can be cut: it forgets what was not flushed.
//
// A Disk is the device's memory. Attach puts it behind a loop device, through a FUSE file that this process serves, so that any filesystem
// can be made on it:
//
//	filesystem ──► loop device ──► file of a FUSE mount ──► Disk: seen, and since the last flush not yet saved
//
// A write is seen at once, and saved with the next flush: what a drive with a write cache does. Cut ends that. Each write that was not
// flushed is then saved, or is lost, or is torn, which means that some of its sectors are saved and others are not, whatever the order of
// the writes was. From that moment on the Disk is a ghost: it answers as before, so that whoever uses it can be unmounted without errors
// and without hanging, but nothing of that is kept. Restart makes it what the next start of the machine finds. So one test is
//
//	Attach, mount, work, Cut, unmount, Detach, Restart, Attach, mount, check
//
// What a cut saves depends on the seed and on the writes, so that a run with the same writes in the same order has the same end; a kernel
// does not promise that order.
//
// The process that serves the disk may use the filesystem on it, but must not open the FUSE file itself: Go's network poller would ask the
// kernel about it and wait for this process. It must not map files of the filesystem either, for a page fault stops all of its threads
// when the garbage collector waits for it.
package lossydisk

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"sync"
)

const (
	// pageBytes is the unit of the Disk's own memory. It says nothing about what is torn.
	pageBytes = 4096
	// tornShare is how many of the unflushed writes are torn at a cut. The others are saved with a probability that each cut draws anew.
	tornShare = 0.15
)

// Options of a Disk.
type Options struct {
	// Bytes is its size, a multiple of 4096. Only what was written takes memory.
	Bytes int64
	// SectorBytes is what is never torn, 512 or 4096. 0 means 512.
	SectorBytes int
	Seed        uint64
}

// Stats are counted since New.
type Stats struct {
	Writes, Flushes   int
	Cuts              int
	Saved, Torn, Lost int // writes that were not flushed when the power was cut
}

// Disk is safe for concurrent use.
type Disk struct {
	size        int64
	sectorBytes int

	mu       sync.Mutex
	rand     *rand.Rand
	seen     pages
	saved    pages
	unsynced []write       // in the order of their arrival; not kept once the power is cut
	gone     chan struct{} // closed when the power is cut
	left     int           // requests until the cut; negative: none is planned
	stats    Stats
}

type write struct {
	at   int64
	data []byte
}

// New makes a disk full of zeros.
func New(o Options) *Disk {
	if o.SectorBytes == 0 {
		o.SectorBytes = 512
	}
	return &Disk{
		size: o.Bytes, sectorBytes: o.SectorBytes, rand: rand.New(rand.NewPCG(o.Seed, 0)),
		seen: pages{}, saved: pages{}, gone: make(chan struct{}), left: -1,
	}
}

// Cut cuts the power. On a disk whose power is cut it does nothing.
func (d *Disk) Cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cut()
}

// CutAfter cuts the power when that many more writes and flushes have been done.
func (d *Disk) CutAfter(requests int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left = requests
}

// Gone is closed when the power is cut. After Restart there is another one.
func (d *Disk) Gone() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.gone
}

// IsCut says whether the power is cut. What was flushed before it said no is safe.
func (d *Disk) IsCut() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.isCut()
}

// Restart makes what a cut has left the contents of the disk. Nothing may be attached to it. Without a cut it is like one.
func (d *Disk) Restart() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cut()
	d.seen = d.saved.clone()
	d.gone = make(chan struct{})
}

// Stats counts what happened.
func (d *Disk) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

func (d *Disk) read(b []byte, at int64) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := int(max(0, min(int64(len(b)), d.size-at)))
	d.seen.read(b[:n], at)
	return n
}

// write says whether the disk is large enough.
func (d *Disk) write(b []byte, at int64) bool {
	if at < 0 || at > d.size-int64(len(b)) {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.step()
	d.seen.write(b, at)
	if !d.isCut() {
		d.stats.Writes++
		d.unsynced = append(d.unsynced, write{at, slices.Clone(b)})
	}
	return true
}

func (d *Disk) flush() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.step()
	if d.isCut() {
		return
	}
	d.stats.Flushes++
	for _, w := range d.unsynced {
		d.saved.write(w.data, w.at)
	}
	d.unsynced = nil
}

// step, and all below, are called with mu held.
func (d *Disk) step() {
	if d.left == 0 {
		d.cut()
	} else if d.left > 0 {
		d.left--
	}
}

func (d *Disk) isCut() bool {
	select {
	case <-d.gone:
		return true
	default:
		return false
	}
}

func (d *Disk) cut() {
	if d.isCut() {
		return
	}
	close(d.gone)
	d.left = -1
	d.stats.Cuts++
	survives := d.rand.Float64()
	for _, w := range d.unsynced {
		switch {
		case d.rand.Float64() < tornShare:
			d.stats.Torn++
			d.tear(w)
		case d.rand.Float64() < survives:
			d.stats.Saved++
			d.saved.write(w.data, w.at)
		default:
			d.stats.Lost++
		}
	}
	d.unsynced = nil
}

// tear saves some sectors of w.
func (d *Disk) tear(w write) {
	for n := 0; n < len(w.data); {
		end := min(len(w.data), n+d.sectorBytes-int((w.at+int64(n))%int64(d.sectorBytes)))
		if d.rand.IntN(2) == 0 {
			d.saved.write(w.data[n:end], w.at+int64(n))
		}
		n = end
	}
}

// pages are the contents of a disk, without pages that are zeros.
type pages map[int64]*[pageBytes]byte

var zeros [pageBytes]byte

// split calls do for each part of n bytes at offset at that lies within one page.
func split(at int64, n int, do func(page int64, in, from, to int)) {
	for from := 0; from < n; {
		page, in := (at+int64(from))/pageBytes, int((at+int64(from))%pageBytes)
		to := min(n, from+pageBytes-in)
		do(page, in, from, to)
		from = to
	}
}

func (p pages) read(b []byte, at int64) {
	split(at, len(b), func(page int64, in, from, to int) {
		if have := p[page]; have != nil {
			copy(b[from:to], have[in:])
		} else {
			clear(b[from:to])
		}
	})
}

func (p pages) write(b []byte, at int64) {
	split(at, len(b), func(page int64, in, from, to int) {
		have := p[page]
		if have == nil && bytes.Equal(b[from:to], zeros[:to-from]) {
			return
		}
		if have == nil {
			have = new([pageBytes]byte)
			p[page] = have
		}
		copy(have[in:], b[from:to])
	})
}

func (p pages) clone() pages {
	c := make(pages, len(p))
	for n, page := range p {
		copied := *page
		c[n] = &copied
	}
	return c
}
