package blob

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"
)

// errCut is what every operation says after the power was cut.
var errCut = errors.New("power is cut")

// disk is a directory whose files remember what was synced. It loses at a power cut what was not, in any part and order, and can
// be told to fail. Not safe for concurrent use.
type disk struct {
	rand  *rand.Rand
	names map[string]*inode // what is seen
	saved map[string]*inode // what is durable
	steps int               // operations until the power is cut; negative: never
	off   bool

	syncFails, writeFails float64 // probabilities
	fullAfter             int     // bytes that may be written; negative: no limit
}

func newDisk(r *rand.Rand) *disk {
	return &disk{rand: r, names: map[string]*inode{}, saved: map[string]*inode{}, steps: -1, fullAfter: -1}
}

// inode has the contents of a file twice: as they are seen, and as they are durable, besides what was written since.
type inode struct {
	seen, saved []byte
	unsynced    []change
}

// change is bytes that were written, or a length that was set.
type change struct {
	at     int64
	data   []byte
	length bool // the file ends at at
}

func (c change) apply(b []byte) []byte {
	if c.length {
		return append(b, make([]byte, max(0, c.at-int64(len(b))))...)[:c.at]
	}
	if len(c.data) == 0 {
		return b
	}
	end := c.at + int64(len(c.data))
	b = append(b, make([]byte, max(0, end-int64(len(b))))...)
	copy(b[c.at:], c.data)
	return b
}

// torn is a part of a change, up to some byte. Lengths have no parts.
func (c change) torn(r *rand.Rand) change {
	c.data = c.data[:r.IntN(len(c.data)+1)]
	return c
}

func (n *inode) change(c change) {
	n.seen = c.apply(n.seen)
	n.unsynced = append(n.unsynced, c)
}

// step counts an operation and says whether it still happens.
func (d *disk) step() error {
	if d.steps == 0 {
		d.off = true
	}
	d.steps--
	if d.off {
		return errCut
	}
	return nil
}

// restart brings the machine up again. After a power cut each change that was not synced is there, is not, or is there up to some byte.
func (d *disk) restart(powerCut bool) {
	d.off, d.steps = false, -1
	if !powerCut {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(d.names)) {
		if n := d.names[name]; d.saved[name] != n && d.rand.IntN(2) == 0 {
			d.saved[name] = n // names may become durable without a sync too
		}
	}
	d.names = maps.Clone(d.saved)
	for _, name := range slices.Sorted(maps.Keys(d.names)) {
		n := d.names[name]
		for _, c := range n.unsynced {
			switch d.rand.IntN(3) {
			case 0:
				n.saved = c.apply(n.saved)
			case 1:
				n.saved = c.torn(d.rand).apply(n.saved)
			}
		}
		n.unsynced = nil
		n.seen = slices.Clone(n.saved)
	}
}

// spoil damages the first byte of a file.
func (d *disk) spoil(name string) {
	d.names[name].seen[0] ^= 1
	d.names[name].saved[0] ^= 1
}

// lose deletes a file.
func (d *disk) lose(name string) {
	delete(d.names, name)
	delete(d.saved, name)
}

func (d *disk) create(name string) (file, error) {
	if err := d.step(); err != nil {
		return nil, err
	}
	if d.names[name] != nil {
		return nil, fs.ErrExist
	}
	d.names[name] = &inode{}
	return &diskFile{d, d.names[name]}, nil
}

func (d *disk) open(name string, _ bool) (file, error) {
	if err := d.step(); err != nil {
		return nil, err
	}
	if d.names[name] == nil {
		return nil, fs.ErrNotExist
	}
	return &diskFile{d, d.names[name]}, nil
}

func (d *disk) sync() error {
	if err := d.step(); err != nil {
		return err
	}
	d.saved = maps.Clone(d.names)
	return nil
}

type diskFile struct {
	d *disk
	n *inode
}

func (f *diskFile) ReadAt(b []byte, at int64) (int, error) {
	if f.d.off {
		return 0, errCut
	}
	if at >= int64(len(f.n.seen)) {
		return 0, io.EOF
	}
	n := copy(b, f.n.seen[at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *diskFile) WriteAt(b []byte, at int64) (int, error) {
	failure := f.d.step()
	if failure == nil && f.d.rand.Float64() < f.d.writeFails {
		failure = syscall.EIO
	}
	if failure == nil && f.d.fullAfter >= 0 {
		if f.d.fullAfter -= len(b); f.d.fullAfter < 0 {
			f.d.fullAfter, failure = 0, syscall.ENOSPC
		}
	}
	if failure != nil {
		b = b[:f.d.rand.IntN(len(b)+1)] // a part of it arrives all the same
	}
	f.n.change(change{at: at, data: slices.Clone(b)})
	return len(b), failure
}

func (f *diskFile) truncate(size int64) error {
	if err := f.d.step(); err != nil {
		return err
	}
	f.n.change(change{at: size, length: true})
	return nil
}

func (f *diskFile) size() (int64, error) {
	if f.d.off {
		return 0, errCut
	}
	return int64(len(f.n.seen)), nil
}

// datasync makes the file durable. When it fails, changes are lost as after a power cut, and the next one knows nothing of them: that is
// what kernels do. What is seen is what the disk has, or still what was written.
func (f *diskFile) datasync() error {
	if err := f.d.step(); err != nil {
		return err
	}
	if f.d.rand.Float64() < f.d.syncFails {
		for _, c := range f.n.unsynced {
			if f.d.rand.IntN(2) == 0 {
				f.n.saved = c.apply(f.n.saved)
			}
		}
		f.n.unsynced = nil
		if f.d.rand.IntN(2) == 0 {
			f.n.seen = slices.Clone(f.n.saved)
		}
		return syscall.EIO
	}
	for _, c := range f.n.unsynced {
		f.n.saved = c.apply(f.n.saved)
	}
	f.n.unsynced = nil
	return nil
}

func (f *diskFile) Close() error { return nil }
