package erofs

import (
	"fmt"
	"slices"
	"strings"
)

// Dir is a directory of the tree that Finish writes.
type Dir struct {
	Attr    Attr
	Entries []Entry // in any order, names unique, neither "." nor ".."
}

// Entry is a name in a directory: of a directory or of an inode that was added before. An inode may have many names.
type Entry struct {
	Name  string
	Inode *Inode
	Dir   *Dir
}

// MaxNameBytes is the longest name of a directory entry on Linux.
const MaxNameBytes = 255

// Totals are the sizes of a finished image.
type Totals struct {
	MetaBytes, DataBytes int64
	Inodes               int64
}

// placedDir is a directory whose place is known.
type placedDir struct {
	dir    *Dir
	parent *placedDir
	inode  Inode
	memory []byte // the inode, its attributes and its inline tail, to be filled
	size   int    // of all directory blocks together
	tail   int    // bytes of the last block that lie behind the inode, 0 if it is a block of its own
	subs   map[*Dir]*placedDir
}

// Finish writes the directories and block 0 and sets the lengths of both files.
func (w *Writer) Finish(root *Dir) (Totals, error) {
	block0 := make([]byte, BlockBytes)
	w.packer.hold = true
	dirs, shared, err := w.placeDirs(root, block0)
	if err != nil {
		return Totals{}, err
	}
	// Where the full blocks of directories begin is known once all inodes have their place.
	cur := w.packer.segments[len(w.packer.segments)-1]
	out := &blockStream{out: w.meta, at: cur.end()}
	xattrBlock := uint32(0)
	if len(shared) > 0 {
		xattrBlock = uint32(out.at / BlockBytes)
		if err := out.append(shared); err != nil {
			return Totals{}, err
		}
	}
	for _, d := range dirs {
		if err := w.writeDir(d, out); err != nil {
			return Totals{}, err
		}
	}
	if _, err := w.packer.flush(); err != nil {
		return Totals{}, err
	}
	if err := out.flush(); err != nil {
		return Totals{}, err
	}
	if err := w.patchLinks(); err != nil {
		return Totals{}, err
	}
	if err := w.data.finish(); err != nil {
		return Totals{}, err
	}
	return w.writeBlock0(block0, out.at, xattrBlock)
}

// writeBlock0 makes the files an image of metaBytes.
func (w *Writer) writeBlock0(block0 []byte, metaBytes int64, xattrBlock uint32) (Totals, error) {
	if metaBytes/BlockBytes > deviceAddress {
		return Totals{}, fmt.Errorf("%w: meta image of %d bytes", ErrTooLarge, metaBytes)
	}
	sb := superblock{inodes: uint64(w.inodes), blocks: uint32(metaBytes / BlockBytes), xattrBlock: xattrBlock, uuid: w.opts.UUID}
	sb.encode(block0[superblockOffset:])
	deviceSlot{tag: w.opts.DeviceTag, blocks: uint32(w.data.next)}.encode(block0[superblockOffset+superblockBytes:])
	le.PutUint32(block0[superblockOffset+4:], checksum(block0))
	if err := w.meta.Truncate(metaBytes); err != nil {
		return Totals{}, fmt.Errorf("set length of meta image to %d: %w", metaBytes, err)
	}
	if _, err := w.meta.WriteAt(block0, 0); err != nil {
		return Totals{}, fmt.Errorf("write superblock: %w", err)
	}
	return Totals{MetaBytes: metaBytes, DataBytes: w.data.next * BlockBytes, Inodes: int64(w.inodes)}, nil
}

// placeDirs gives every directory its place, parents before children, each level in the order of names.
func (w *Writer) placeDirs(root *Dir, block0 []byte) (dirs []*placedDir, shared []byte, err error) {
	r := &placedDir{dir: root}
	if shared, err = w.placeRoot(r, block0); err != nil {
		return nil, nil, err
	}
	dirs = append(dirs, r)
	for i := 0; i < len(dirs); i++ { // grows
		d := dirs[i]
		for _, e := range d.dir.Entries {
			if e.Dir == nil {
				if e.Inode.links++; e.Inode.links == 2 {
					w.linked = append(w.linked, e.Inode)
				}
				continue
			}
			sub := &placedDir{dir: e.Dir, parent: d}
			if err := w.placeDir(sub); err != nil {
				return nil, nil, fmt.Errorf("directory %q: %w", e.Name, err)
			}
			if d.subs == nil {
				d.subs = make(map[*Dir]*placedDir)
			}
			d.subs[e.Dir] = sub
			dirs = append(dirs, sub)
		}
	}
	return dirs, shared, nil
}

// placeRoot puts the root inode into block 0. Its attributes are shared ones when they do not fit there.
func (w *Writer) placeRoot(d *placedDir, block0 []byte) (shared []byte, err error) {
	d.sort()
	xattrs, err := encodeXattrs(d.dir.Attr.Xattrs)
	if err != nil {
		return nil, err
	}
	if rootOffset+inodeBytes+len(xattrs.bytes) > BlockBytes {
		if xattrs, shared, err = encodeSharedXattrs(d.dir.Attr.Xattrs); err != nil {
			return nil, err
		}
	}
	d.memory = block0[rootOffset : rootOffset+inodeBytes+len(xattrs.bytes)]
	d.inode = Inode{nid: rootOffset / slotBytes, kind: dirDirectory}
	return shared, w.encodeDir(d, xattrs)
}

func (w *Writer) placeDir(d *placedDir) error {
	d.sort()
	xattrs, err := encodeXattrs(d.dir.Attr.Xattrs)
	if err != nil {
		return err
	}
	head := inodeBytes + len(xattrs.bytes)
	if tail := d.size % BlockBytes; head+tail <= BlockBytes {
		d.tail = tail
	}
	at, memory, err := w.packer.place(head + d.tail)
	if err != nil {
		return err
	}
	d.memory, d.inode = memory, Inode{nid: uint64(at) / slotBytes, kind: dirDirectory}
	return w.encodeDir(d, xattrs)
}

// encodeDir writes the inode without its start block, which is not known yet.
func (w *Writer) encodeDir(d *placedDir, xattrs xattrBody) error {
	n := diskInode{attr: &d.dir.Attr, layout: layoutPlain, size: uint64(d.size), links: 2}
	if d.tail > 0 {
		n.layout = layoutInline
	}
	for _, e := range d.dir.Entries {
		if e.Dir != nil {
			n.links++
		}
	}
	return w.encode(n, xattrs, d.memory)
}

// sort brings the entries into the order that the kernel searches by and computes the directory's size.
func (d *placedDir) sort() {
	slices.SortFunc(d.dir.Entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	room := BlockBytes
	for name := range d.names() {
		need := direntBytes + len(name)
		if need > room {
			d.size += room // the rest of the block stays empty
			room = BlockBytes
		}
		d.size += need
		room -= need
	}
}

// names yields "." and ".." and all entries in order: a few names, such as "!" or "-", sort before ".".
func (d *placedDir) names() func(yield func(string, *Entry) bool) {
	return func(yield func(string, *Entry) bool) {
		dots := []string{".", ".."}
		for i := range d.dir.Entries {
			e := &d.dir.Entries[i]
			for len(dots) > 0 && dots[0] < e.Name {
				if !yield(dots[0], nil) {
					return
				}
				dots = dots[1:]
			}
			if !yield(e.Name, e) {
				return
			}
		}
		for _, dot := range dots {
			if !yield(dot, nil) {
				return
			}
		}
	}
}

// resolve returns nid and type of an entry.
func (d *placedDir) resolve(name string, e *Entry) (uint64, uint8) {
	switch {
	case e == nil && name == ".." && d.parent != nil:
		return d.parent.inode.nid, dirDirectory
	case e == nil: // ".", and ".." of the root
		return d.inode.nid, dirDirectory
	case e.Dir != nil:
		return d.subs[e.Dir].inode.nid, dirDirectory
	}
	return e.Inode.nid, e.Inode.kind
}

// writeDir fills the directory's blocks and tail.
func (w *Writer) writeDir(d *placedDir, out *blockStream) error {
	first := (out.at + int64(len(out.buf))) / BlockBytes
	left := d.size
	var block []named
	room := BlockBytes
	emit := func() error {
		b := encodeDirents(block)
		if left -= BlockBytes; left <= 0 && d.tail > 0 {
			copy(d.memory[len(d.memory)-d.tail:], b)
			return nil
		}
		return out.append(b)
	}
	for name, e := range d.names() {
		need := direntBytes + len(name)
		if need > room {
			if err := emit(); err != nil {
				return err
			}
			block, room = block[:0], BlockBytes
		}
		nid, kind := d.resolve(name, e)
		block = append(block, named{name, nid, kind})
		room -= need
	}
	if err := emit(); err != nil {
		return err
	}
	if d.size > d.tail {
		le.PutUint32(d.memory[16:], uint32(first))
	}
	return nil
}

type named struct {
	name string
	nid  uint64
	kind uint8
}

// encodeDirents makes one directory block: struct erofs_dirent for each entry, then the names.
func encodeDirents(entries []named) []byte {
	size := 0
	for _, e := range entries {
		size += direntBytes + len(e.name)
	}
	b := make([]byte, size)
	at := direntBytes * len(entries)
	for i, e := range entries {
		d := b[i*direntBytes:]
		le.PutUint64(d[0:], e.nid)
		le.PutUint16(d[8:], uint16(at))
		d[10] = e.kind
		at += copy(b[at:], e.name)
	}
	return b
}

// patchLinks writes the link counts of the inodes with more than one name.
func (w *Writer) patchLinks() error {
	for _, n := range w.linked {
		var b [4]byte
		le.PutUint32(b[:], n.links)
		if _, err := w.meta.WriteAt(b[:], int64(n.nid)*slotBytes+linksOffset); err != nil {
			return fmt.Errorf("write link count: %w", err)
		}
	}
	return nil
}

// blockStream writes blocks one after the other.
type blockStream struct {
	out File
	at  int64 // position of buf
	buf []byte
}

// append writes b and fills up the last block with zeros.
func (s *blockStream) append(b []byte) error {
	s.buf = append(s.buf, b...)
	s.buf = append(s.buf, make([]byte, alignUp(len(s.buf), BlockBytes)-len(s.buf))...)
	if len(s.buf) >= 1<<20 {
		return s.flush()
	}
	return nil
}

func (s *blockStream) flush() error {
	if len(s.buf) > 0 {
		if _, err := s.out.WriteAt(s.buf, s.at); err != nil {
			return fmt.Errorf("write meta image at %d: %w", s.at, err)
		}
	}
	s.at += int64(len(s.buf))
	s.buf = s.buf[:0]
	return nil
}
