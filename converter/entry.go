package converter

import (
	"errors"
	"fmt"
	"strings"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/erofs"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tarstream"
)

// Whiteouts of the OCI image specification, layer.md.
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	whiteoutAUFS   = ".wh..wh." // bookkeeping of AUFS
)

// add puts an entry of an archive, or a record of an index, which means the same, into the tree. What regular returns stands for a regular
// file there.
func (b *build) add(h *tarstream.Header, regular func(erofs.Attr) (*node, error)) error {
	path, err := splitPath(h.Name)
	if err != nil {
		return err
	}
	if len(path) == 0 {
		return b.rootEntry(h)
	}
	name := strings.Clone(path[len(path)-1]) // not to keep the whole path
	if err := b.admit(name); err != nil {
		return err
	}
	if isAUFS(path) {
		b.dropped.AUFS++
		return nil
	}
	if h.Type == tarstream.CharDevice && h.Devmajor == 0 && h.Devminor == 0 {
		b.dropped.WhiteoutDevices++
		return nil
	}
	dir, err := b.tree.directory(path[:len(path)-1], b.admit)
	if err != nil {
		return err
	}
	if hidden, ok := strings.CutPrefix(name, whiteoutPrefix); ok {
		return hide(dir, name, hidden)
	}
	n, err := b.node(h, regular)
	if err != nil {
		return err
	}
	dir.put(name, n)
	return nil
}

// hasContents says whether what the archive has for a regular file at path becomes a file's contents, and is not just a mark.
func hasContents(path []string) bool {
	return len(path) > 0 && !isAUFS(path) && !strings.HasPrefix(path[len(path)-1], whiteoutPrefix)
}

// isAUFS says whether a path is, or lies below, one of AUFS's own names.
func isAUFS(path []string) bool {
	for i, name := range path {
		if strings.HasPrefix(name, whiteoutAUFS) && (name != whiteoutOpaque || i < len(path)-1) {
			return true
		}
	}
	return false
}

func hide(dir *directory, name, hidden string) error {
	switch {
	case name == whiteoutOpaque:
		dir.opaque = true
	case hidden == "" || hidden == "." || hidden == "..":
		return fmt.Errorf("whiteout of %q", hidden)
	default:
		dir.hide(hidden)
	}
	return nil
}

// rootEntry sets the attributes of the layer's root.
func (b *build) rootEntry(h *tarstream.Header) error {
	if h.Type != tarstream.Directory {
		return errors.New("the root of a layer must be a directory")
	}
	a, err := b.attributes(h)
	b.tree.root.attr = a
	return err
}

// node makes what the entry's name shall stand for.
func (b *build) node(h *tarstream.Header, regular func(erofs.Attr) (*node, error)) (*node, error) {
	if h.Type == tarstream.HardLink {
		return b.hardLink(h.Linkname)
	}
	a, err := b.attributes(h)
	if err != nil {
		return nil, err
	}
	switch h.Type {
	case tarstream.Directory:
		return &node{dir: &directory{attr: a}}, nil
	case tarstream.Regular:
		return regular(a)
	case tarstream.Symlink:
		if h.Linkname == "" || len(h.Linkname) >= maxPathBytes {
			return nil, fmt.Errorf("symbolic link target of %d bytes", len(h.Linkname))
		}
		return b.symlink(a, h.Linkname)
	}
	return b.special(a, h.Devmajor, h.Devminor)
}

// hardLink returns what is at target now: a later entry of that name does not change the link.
func (b *build) hardLink(target string) (*node, error) {
	path, err := splitPath(target)
	if err != nil {
		return nil, fmt.Errorf("hard link to %s: %w", quote(target), err)
	}
	n, err := b.tree.lookup(path)
	switch {
	case err != nil:
		return nil, fmt.Errorf("hard link to %s: %w", quote(target), err)
	case n == nil:
		return nil, fmt.Errorf("hard link to %s, which is not in this layer", quote(target))
	case n.dir != nil:
		return nil, fmt.Errorf("hard link to the directory %s", quote(target))
	}
	return n, nil
}

// modeOf is the type of an inode.
var modeOf = map[tarstream.Type]uint32{
	tarstream.Regular: erofs.ModeRegular, tarstream.Directory: erofs.ModeDir, tarstream.Symlink: erofs.ModeSymlink,
	tarstream.CharDevice: erofs.ModeChar, tarstream.BlockDevice: erofs.ModeBlock, tarstream.FIFO: erofs.ModeFIFO,
}

func (b *build) attributes(h *tarstream.Header) (erofs.Attr, error) {
	kind, ok := modeOf[h.Type]
	if !ok {
		return erofs.Attr{}, fmt.Errorf("unknown entry type %q", h.Type)
	}
	a := erofs.Attr{Mode: kind | h.Mode, UID: h.UID, GID: h.GID, Mtime: h.ModTime.Sec, MtimeNsec: h.ModTime.Nsec}
	b.dropped.NamedACLs += int64(h.NamedACLs)
	for _, x := range h.Xattrs {
		if isOverlayXattr(x.Name) {
			b.dropped.OverlayXattrs++
			continue
		}
		if err := b.addXattr(&a, x.Name, x.Value); err != nil {
			return erofs.Attr{}, err
		}
	}
	return a, nil
}
