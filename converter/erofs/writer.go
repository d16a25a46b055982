// Package erofs writes EROFS images in one pass, as two files: a meta image with the superblock, all inodes, directories, small
// files and the tails of larger ones; and a data blob with the full blocks of regular files, the image's only device.
//
//	meta image                                             data blob
//	 0     superblock, device slot, root inode              0  full blocks of the files, in the order they were added
//	 1..   inodes with their attributes and inline data
//	 then  full blocks of directories
//
// File contents go straight to the two files; memory holds one segment of inodes, one buffer of data, and what the caller keeps
// to build the directories: an Inode for each entry. Directories come last, by Finish, which writes block 0 at the very end, so
// a file that was not finished is not an EROFS image.
//
// The images mount on Linux 5.16 and later (file-backed from 6.12) with the data blob as device=. Nothing in them depends on
// time, place or chance: the same calls give the same bytes.
package erofs

import (
	"errors"
	"fmt"
	"io"
)

// ErrTooLarge is wrapped by errors about something that the format cannot hold.
var ErrTooLarge = errors.New("too large for EROFS")

// Mode bits, as in stat(2).
const (
	ModeType    = 0o170000
	ModeSocket  = 0o140000
	ModeSymlink = 0o120000
	ModeRegular = 0o100000
	ModeBlock   = 0o060000
	ModeDir     = 0o040000
	ModeChar    = 0o020000
	ModeFIFO    = 0o010000
)

// Attr is what every inode has.
type Attr struct {
	Mode      uint32 // type, set-id, sticky and permission bits
	UID, GID  uint32
	Mtime     int64 // seconds since 1970
	MtimeNsec uint32
	Xattrs    []Xattr // names are unique
}

// Inode is an inode that was written; directories refer to it. Its link count is written by Finish.
type Inode struct {
	nid   uint64
	kind  uint8
	links uint32
}

// Segment is a range of a sparse file that has data, in bytes.
type Segment struct{ Offset, Length int64 }

// Options say what the image is called.
type Options struct {
	UUID [16]byte
	// DeviceTag is stored in the device slot, up to 64 bytes: what fscache looks the data blob up by.
	DeviceTag string
}

// Writer writes one image. Not safe for concurrent use. After an error it must not be used any more.
type Writer struct {
	meta   File
	opts   Options
	packer *packer
	data   *dataBlob
	inodes uint32
	linked []*Inode // inodes with more than one name: they were written with link count 1
}

// NewWriter starts an image in two empty files. Without data, nil, the data blob is somebody else's business: only its length is
// computed, and regular files are added by Reserve and ReserveSparse.
func NewWriter(meta, data File, o Options) *Writer {
	return &Writer{meta: meta, opts: o, packer: newPacker(meta), data: newDataBlob(data)}
}

// Regular adds a regular file of size bytes, which are read from r. A file that ends early is io.ErrUnexpectedEOF.
func (w *Writer) Regular(a Attr, size int64, r io.Reader) (*Inode, error) {
	xattrs, err := encodeXattrs(a.Xattrs)
	if err != nil {
		return nil, err
	}
	head := inodeBytes + len(xattrs.bytes)
	full, tail := size&^(BlockBytes-1), int(size%BlockBytes)
	layout := uint16(layoutInline)
	if tail == 0 || head+tail > BlockBytes {
		// A tail that does not fit a block together with its inode would leave as much unused as a block of its own.
		layout, full, tail = layoutPlain, alignUp(size, BlockBytes), 0
	}
	start := w.data.next
	if err := w.data.copyBlocks(r, size-int64(tail), full); err != nil {
		return nil, err
	}
	n := diskInode{attr: &a, layout: layout, size: uint64(size)}
	if full > 0 {
		n.u = deviceAddress + uint32(start)
	}
	return w.add(n, xattrs, tail, func(b []byte) error {
		_, err := io.ReadFull(r, b)
		return unexpected(err)
	})
}

// unexpected is io.EOF as an error: here something more was promised.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Symlink adds a symbolic link.
func (w *Writer) Symlink(a Attr, target string) (*Inode, error) {
	xattrs, err := encodeXattrs(a.Xattrs)
	if err != nil {
		return nil, err
	}
	if len(target) >= BlockBytes {
		return nil, fmt.Errorf("%w: symbolic link target has %d bytes", ErrTooLarge, len(target))
	}
	n := diskInode{attr: &a, layout: layoutInline, size: uint64(len(target))}
	if inodeBytes+len(xattrs.bytes)+len(target) <= BlockBytes {
		return w.add(n, xattrs, len(target), func(b []byte) error { copy(b, target); return nil })
	}
	n.layout = layoutPlain
	if n.u, err = w.targetBlock(target); err != nil {
		return nil, err
	}
	return w.add(n, xattrs, 0, nil)
}

// targetBlock writes the target of a symbolic link to a block of its own and returns its address: in the data blob, unless that is not
// written here.
func (w *Writer) targetBlock(target string) (uint32, error) {
	if w.data.out == nil {
		return w.packer.block([]byte(target))
	}
	block, err := w.data.block([]byte(target))
	return deviceAddress + block, err
}

// Special adds a device, FIFO or socket. Major (12 bits) and minor (20 bits) are those of a device.
func (w *Writer) Special(a Attr, major, minor uint32) (*Inode, error) {
	if major >= 1<<12 || minor >= 1<<20 {
		return nil, fmt.Errorf("device number %d:%d: Linux has 12 bits for the major and 20 for the minor number", major, minor)
	}
	xattrs, err := encodeXattrs(a.Xattrs)
	if err != nil {
		return nil, err
	}
	return w.add(diskInode{attr: &a, u: encodeDevice(major, minor)}, xattrs, 0, nil)
}

// add places an inode with its attributes and extra bytes behind them, which fill writes.
func (w *Writer) add(n diskInode, xattrs xattrBody, extra int, fill func([]byte) error) (*Inode, error) {
	head := inodeBytes + len(xattrs.bytes)
	at, b, err := w.packer.place(head + extra)
	if err != nil {
		return nil, err
	}
	if err := w.encode(n, xattrs, b); err != nil {
		return nil, err
	}
	if fill != nil {
		if err := fill(b[head:]); err != nil {
			return nil, err
		}
	}
	return &Inode{nid: uint64(at) / slotBytes, kind: direntType(n.attr.Mode)}, nil
}

// encode writes an inode with the next inode number and link count 1.
func (w *Writer) encode(n diskInode, xattrs xattrBody, b []byte) error {
	if w.inodes == 1<<32-1 {
		return fmt.Errorf("%w: more than 2^32 inodes", ErrTooLarge)
	}
	w.inodes++
	n.number, n.xattrCount = w.inodes, xattrs.count
	if n.links == 0 {
		n.links = 1
	}
	n.encode(b)
	copy(b[inodeBytes:], xattrs.bytes)
	return nil
}
