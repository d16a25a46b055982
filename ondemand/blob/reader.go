package blob

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"

	"golang.org/x/sys/unix"
)

// ErrDamaged says that data has other bytes than an extent should have.
var ErrDamaged = errors.New("the disk has other bytes than it should")

// Reader reads the extents of a blob that are present, beside whoever fills it. Its files are its own. It is safe for concurrent use.
type Reader struct {
	name    string
	table   *table
	data    *os.File
	present bitmap // that of the blob; nil: all are
	closes  []func() error
}

// Reader returns a Reader of the blob. It reads data through the same open file, so it raises no events (see Options.Data), and goes on when the
// blob is closed.
func (b *Blob) Reader() (*Reader, error) {
	r := &Reader{name: b.name, present: b.present}
	extents, err := r.dup(b.table.f)
	if err != nil {
		return nil, err
	}
	r.table = &table{f: osFile{extents}, head: b.table.head, index: b.table.index}
	if r.data, err = r.dup(b.data); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// OpenReader opens the blob in dir, which was made for the instance id, and has everything; what is present is not looked up. Nobody may watch it.
func OpenReader(dir string, id [32]byte) (_ *Reader, err error) {
	r := &Reader{name: dir}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open blob %s to read: %w", dir, err), r.Close())
		}
	}()
	extents, err := osDirectory(dir).open(ExtentsName, false)
	if err != nil {
		return nil, err
	}
	r.closes = append(r.closes, extents.Close)
	if r.table, err = openTable(extents, id); err != nil {
		return nil, fmt.Errorf("%s: %w", ExtentsName, err)
	}
	if r.data, err = os.Open(filepath.Join(dir, DataName)); err != nil {
		return nil, err
	}
	r.closes = append(r.closes, r.data.Close)
	return r, nil
}

// dup returns another descriptor of an open file, which is closed with r.
func (r *Reader) dup(f file) (*os.File, error) {
	from, ok := f.(osFile)
	if !ok {
		return nil, fmt.Errorf("blob %s: its files are not the kernel's", r.name)
	}
	raw, err := from.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var dupErr error
	if err := raw.Control(func(of uintptr) { fd, dupErr = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, fmt.Errorf("blob %s: %w (%w)", r.name, os.ErrClosed, err) // it knows no other reason, and has no name for this one
	}
	if dupErr != nil {
		return nil, fmt.Errorf("blob %s: %w", r.name, dupErr)
	}
	to := os.NewFile(uintptr(fd), from.Name())
	r.closes = append(r.closes, to.Close)
	return to, nil
}

// Count is the number of extents.
func (r *Reader) Count() int { return r.table.head.count }

// Present says whether extent i may be read now.
func (r *Reader) Present(i int) bool { return r.present == nil || r.present.has(i) }

// Extents returns the extents from first up to, and without, end.
func (r *Reader) Extents(first, end int) ([]Extent, error) {
	list, err := r.table.extents(first, end)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %s: %w", r.name, ExtentsName, err)
	}
	return list, nil
}

// At returns the number of the extent at a place, -1 if none is exactly there.
func (r *Reader) At(offset int64, length uint32) (int, error) {
	return r.table.at(r.name, offset, length)
}

// Read fills dst, of x.Length bytes, with an extent that is present, and compares its digest: the error is ErrDamaged if it is another.
func (r *Reader) Read(x Extent, dst []byte) error {
	if _, err := r.data.ReadAt(dst, x.Offset); err != nil {
		return fmt.Errorf("read %d bytes at %d of blob %s: %w", len(dst), x.Offset, r.name, err)
	}
	if sha256.Sum256(dst) != x.Digest {
		return fmt.Errorf("%d bytes at %d of blob %s: %w", len(dst), x.Offset, r.name, ErrDamaged)
	}
	return nil
}

// Close closes the files of r. It may be called again.
func (r *Reader) Close() error {
	var errs []error
	for _, f := range r.closes {
		errs = append(errs, f())
	}
	r.closes = nil
	return errors.Join(errs...)
}

// At returns the number of the extent at a place, -1 if none is exactly there.
func (b *Blob) At(offset int64, length uint32) (int, error) {
	return b.table.at(b.name, offset, length)
}

func (t *table) at(name string, offset int64, length uint32) (i int, err error) {
	if offset < 0 {
		return -1, nil
	}
	n := sort.Search(len(t.index), func(n int) bool { return t.index[n] > offset }) - 1
	if n < 0 {
		return -1, nil
	}
	p, err := t.load(n)
	if err != nil {
		return -1, fmt.Errorf("blob %s: %s: %w", name, ExtentsName, err)
	}
	defer p.release()
	i = p.find(func(_, end int64) bool { return end > offset })
	if i == p.n || p.extent(i).Offset != offset || p.extent(i).Length != length {
		return -1, nil
	}
	return n*pageEntries + i, nil
}
