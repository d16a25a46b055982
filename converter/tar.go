package converter

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// FromTar converts a layer's tar stream. Compression (none, gzip, zstd) is detected by content. The stream is read to its end;
// r must return when ctx ends.
//
// A tar that was cut at a header boundary looks complete to every tar reader, so the caller must compare Result.DiffID or
// Result.Blob with what it expects before it uses the instance.
func FromTar(ctx context.Context, r io.Reader, t Target, l Limits) (Result, error) {
	b := &tarBuild{build: newBuild(t, l)}
	var result Result
	sums, err := stream(ctx, r, b.limits.StreamBytes, func(r io.Reader) error {
		if err := b.entries(r); err != nil {
			return err
		}
		var err error
		result, err = b.finish()
		return err
	})
	if err != nil {
		return Result{}, err
	}
	result.Blob, result.BlobBytes = sums.blob, sums.blobBytes
	result.DiffID, result.DiffBytes = sums.diffID, sums.diffBytes
	return result, nil
}

type tarBuild struct {
	*build
	in *tarstream.Reader
}

// entries reads the archive and what follows it up to the end of the stream.
func (b *tarBuild) entries(r io.Reader) error {
	b.in = tarstream.NewReader(r, tarstream.Limits{FileBytes: b.limits.FileBytes})
	for {
		h, err := b.in.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = b.entry(h)
		}
		if err != nil {
			return b.located(err)
		}
	}
}

// located says where in the archive an error happened. Errors of the stream itself speak for themselves.
func (b *tarBuild) located(err error) error {
	var s *streamError
	if errors.As(err, &s) {
		return s
	}
	name, offset := b.in.Current()
	return &EntryError{Name: name, Offset: offset, Err: err}
}

func (b *tarBuild) entry(h *tarstream.Header) error {
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
	n, err := b.node(h)
	if err != nil {
		return err
	}
	dir.put(name, n)
	return nil
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
func (b *tarBuild) rootEntry(h *tarstream.Header) error {
	if h.Type != tarstream.Directory {
		return errors.New("the root of a layer must be a directory")
	}
	a, err := b.attr(h)
	b.tree.root.attr = a
	return err
}

// node makes what the entry's name shall stand for.
func (b *tarBuild) node(h *tarstream.Header) (*node, error) {
	if h.Type == tarstream.HardLink {
		return b.hardLink(h.Linkname)
	}
	a, err := b.attr(h)
	if err != nil {
		return nil, err
	}
	switch h.Type {
	case tarstream.Directory:
		return &node{dir: &directory{attr: a}}, nil
	case tarstream.Regular:
		segments := make([]erofs.Segment, len(h.Sparse))
		for i, s := range h.Sparse {
			segments[i] = erofs.Segment(s)
		}
		return b.regular(a, h.Size, segments, h.Sparse == nil, b.in)
	case tarstream.Symlink:
		if h.Linkname == "" || len(h.Linkname) >= maxPathBytes {
			return nil, fmt.Errorf("symbolic link target of %d bytes", len(h.Linkname))
		}
		return b.symlink(a, h.Linkname)
	}
	return b.special(a, h.Devmajor, h.Devminor)
}

// hardLink returns what is at target now: a later entry of that name does not change the link.
func (b *tarBuild) hardLink(target string) (*node, error) {
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

func (b *tarBuild) attr(h *tarstream.Header) (erofs.Attr, error) {
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
