package converter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/erofs"
)

// FromDir converts a directory as overlayfs leaves it in an upper directory: 0:0 character devices are whiteouts,
// trusted.overlay.opaque marks opaque directories. Nothing may write below dir meanwhile.
func FromDir(ctx context.Context, dir string, t Target, l Limits) (_ Result, err error) {
	defer contain(&err)
	b := newDirBuild(ctx, t, l)
	if err := b.root(dir); err != nil {
		return Result{}, err
	}
	return b.finish()
}

type dirBuild struct {
	*build
	ctx    context.Context
	linked map[fileID]*node // inodes with several names that were written already
	buf    []byte           // for extended attributes
}

type fileID struct{ dev, ino uint64 }

func newDirBuild(ctx context.Context, t Target, l Limits) *dirBuild {
	return &dirBuild{build: newBuild(t, l), ctx: ctx, linked: make(map[fileID]*node), buf: make([]byte, 64<<10)}
}

// root reads the whole tree.
func (b *dirBuild) root(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return &os.PathError{Op: "convert", Path: dir, Err: unix.ENOTDIR}
	}
	return b.directory(b.tree.root, dir, &st)
}

// directory reads the directory at path into d. Entries come in the order of their names: the order decides where contents lie
// in the image.
func (b *dirBuild) directory(d *directory, path string, st *unix.Stat_t) error {
	a, opaque, err := b.attr(path, st)
	if err != nil {
		return &EntryError{Name: path, Offset: -1, Err: err}
	}
	d.attr, d.opaque = a, opaque
	entries, err := os.ReadDir(path) // sorted
	if err != nil {
		return &EntryError{Name: path, Offset: -1, Err: err}
	}
	for _, e := range entries {
		if err := b.ctx.Err(); err != nil {
			return err
		}
		if err := b.child(d, e.Name(), filepath.Join(path, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (b *dirBuild) child(d *directory, name, path string) error {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if err == nil {
		err = b.admit(name)
	}
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return b.directory(d.mkdir(name, impliedAttr), path, &st)
	}
	if err == nil {
		err = b.entry(d, name, path, &st)
	}
	if err != nil {
		return &EntryError{Name: path, Offset: -1, Err: err}
	}
	return nil
}

// entry adds everything but a directory.
func (b *dirBuild) entry(d *directory, name, path string, st *unix.Stat_t) error {
	if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
		d.hide(name)
		return nil
	}
	id := fileID{st.Dev, st.Ino}
	n := b.linked[id]
	if n == nil {
		var err error
		if n, err = b.node(path, st); err != nil {
			return err
		}
		if st.Nlink > 1 {
			b.linked[id] = n
		}
	}
	d.put(name, n)
	return nil
}

// node writes the inode of everything but a directory.
func (b *dirBuild) node(path string, st *unix.Stat_t) (*node, error) {
	a, _, err := b.attr(path, st)
	if err != nil {
		return nil, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return b.file(path, a)
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return nil, err
		}
		return b.symlink(a, target)
	}
	return b.special(a, unix.Major(st.Rdev), unix.Minor(st.Rdev))
}

func (b *dirBuild) file(path string, a erofs.Attr) (*node, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	segments, err := dataSegments(f, info.Size())
	if err != nil {
		return nil, err
	}
	return b.regular(a, info.Size(), segments, false, &segmentReader{ctx: b.ctx, f: f, left: slices.Clone(segments)})
}

// dataSegments asks the filesystem where f has data. One without holes has a single segment.
func dataSegments(f *os.File, size int64) ([]erofs.Segment, error) {
	var segments []erofs.Segment
	for off := int64(0); off < size; {
		start, err := f.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // only a hole is left
			break
		}
		if err != nil {
			return nil, fmt.Errorf("find data from offset %d: %w", off, err)
		}
		end, err := f.Seek(start, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("find end of data from offset %d: %w", start, err)
		}
		end = min(end, size)
		if start >= end {
			break
		}
		segments = append(segments, erofs.Segment{Offset: start, Length: end - start})
		off = end
	}
	return segments, nil
}

// segmentReader reads the segments of a file one after the other.
type segmentReader struct {
	ctx  context.Context
	f    *os.File
	left []erofs.Segment
}

func (r *segmentReader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	for len(r.left) > 0 && r.left[0].Length == 0 {
		r.left = r.left[1:]
	}
	if len(r.left) == 0 {
		return 0, io.EOF
	}
	s := &r.left[0]
	n, err := r.f.ReadAt(b[:min(int64(len(b)), s.Length)], s.Offset)
	s.Offset += int64(n)
	s.Length -= int64(n)
	if err == io.EOF && n > 0 {
		err = nil
	}
	return n, err
}

func (b *dirBuild) attr(path string, st *unix.Stat_t) (a erofs.Attr, opaque bool, err error) {
	a = erofs.Attr{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: st.Mtim.Sec, MtimeNsec: uint32(st.Mtim.Nsec)}
	names, err := b.xattrNames(path)
	if err != nil {
		return a, false, err
	}
	for _, name := range names {
		if marker, ok := strings.CutPrefix(name, "trusted.overlay."); ok && !strings.HasPrefix(marker, "overlay.") {
			found, err := b.marker(path, name)
			if err != nil {
				return a, false, err
			}
			opaque = opaque || found
			continue
		}
		value, err := b.xattr(path, name)
		if err != nil {
			return a, false, err
		}
		if err := b.addXattr(&a, name, value); err != nil {
			return a, false, err
		}
	}
	return a, opaque, nil
}

// marker deals with an attribute that overlayfs made in its upper directory (fs/overlayfs/overlayfs.h, enum ovl_xattr). It
// returns whether that marks an opaque directory. (Attributes below trusted.overlay.overlay. are those of an overlayfs that a
// container has; they are escaped and stay as they are.)
func (b *dirBuild) marker(path, name string) (opaque bool, err error) {
	switch name {
	case "trusted.overlay.opaque":
		value, err := b.xattr(path, name)
		if err != nil || string(value) == "y" {
			return err == nil, err
		}
		return false, fmt.Errorf("%s is %q, which only tools other than overlayfs write", name, value)
	case "trusted.overlay.origin", "trusted.overlay.impure", "trusted.overlay.nlink", "trusted.overlay.upper", "trusted.overlay.uuid", "trusted.overlay.protattr":
		b.dropped.OverlayXattrs++
		return false, nil
	}
	return false, fmt.Errorf("%s: the upper directory was mounted with redirect_dir or metacopy and cannot be a layer of its own", name)
}

// xattrNames lists the attributes of path.
func (b *dirBuild) xattrNames(path string) ([]string, error) {
	n, err := unix.Llistxattr(path, b.buf)
	if err == unix.ENOTSUP || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	return strings.Split(strings.TrimSuffix(string(b.buf[:n]), "\x00"), "\x00"), nil
}

// xattr returns a value, valid until the next call.
func (b *dirBuild) xattr(path, name string) ([]byte, error) {
	n, err := unix.Lgetxattr(path, name, b.buf)
	if err != nil {
		return nil, fmt.Errorf("read extended attribute %s: %w", name, err)
	}
	return b.buf[:n], nil
}
