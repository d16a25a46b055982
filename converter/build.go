package converter

import (
	"encoding/hex"
	"fmt"
	"io"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/erofs"
)

// build is one conversion: what both kinds of input have in common.
type build struct {
	tree    *tree
	image   *erofs.Writer
	limits  Limits
	bytes   int64 // declared sizes so far
	inodes  int64
	kept    int64 // metadata that stays in memory
	dropped Dropped
}

func newBuild(t Target, l Limits) *build {
	o := erofs.Options{DeviceTag: hex.EncodeToString(t.ID[:])}
	copy(o.UUID[:], t.ID[:])
	return &build{tree: newTree(), image: erofs.NewWriter(t.Meta, t.Data, o), limits: l.withDefaults()}
}

func (l Limits) withDefaults() Limits {
	set := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	set(&l.FileBytes, 2<<40)
	set(&l.LayerBytes, 4<<40)
	set(&l.StreamBytes, 1<<40)
	set(&l.Inodes, 16<<20)
	set(&l.MetadataBytes, 1<<30)
	return l
}

// admit counts one more entry.
func (b *build) admit(name string) error {
	if b.inodes++; b.inodes > b.limits.Inodes {
		return fmt.Errorf("%w: more than %d entries", ErrLimit, b.limits.Inodes)
	}
	return b.keep(len(name))
}

// keep counts metadata that stay in memory up to the end.
func (b *build) keep(bytes int) error {
	if b.kept += int64(bytes); b.kept > b.limits.MetadataBytes {
		return fmt.Errorf("%w: names, link targets, attributes of directories and extents of more than %d bytes", ErrLimit, b.limits.MetadataBytes)
	}
	return nil
}

// admitFile counts the size of a file.
func (b *build) admitFile(size int64) error {
	if size > b.limits.FileBytes {
		return fmt.Errorf("%w: file of %d bytes, allowed are %d", ErrLimit, size, b.limits.FileBytes)
	}
	if b.bytes += size; b.bytes > b.limits.LayerBytes {
		return fmt.Errorf("%w: files of more than %d bytes together", ErrLimit, b.limits.LayerBytes)
	}
	return nil
}

// regular writes a regular file: size bytes of r, or if it is not dense the segments, which r delivers.
func (b *build) regular(a erofs.Attr, size int64, segments []erofs.Segment, dense bool, r io.Reader) (*node, error) {
	if err := b.admitFile(size); err != nil {
		return nil, err
	}
	var n *erofs.Inode
	var err error
	if dense {
		n, err = b.image.Regular(a, size, r)
	} else {
		n, err = b.image.Sparse(a, size, segments, r)
	}
	return &node{inode: n}, err
}

func (b *build) symlink(a erofs.Attr, target string) (*node, error) {
	if err := b.keep(len(target)); err != nil {
		return nil, err
	}
	n, err := b.image.Symlink(a, target)
	return &node{inode: n, target: target, link: true}, err
}

func (b *build) special(a erofs.Attr, major, minor uint32) (*node, error) {
	n, err := b.image.Special(a, major, minor)
	return &node{inode: n}, err
}

// finish writes the directories and completes the image.
func (b *build) finish() (Result, error) {
	var shared *erofs.Inode
	root, err := b.tree.root.image(true, func() (*erofs.Inode, error) {
		if shared != nil {
			return shared, nil
		}
		var err error
		shared, err = b.image.Special(erofs.Attr{Mode: erofs.ModeChar}, 0, 0)
		return shared, err
	})
	if err != nil {
		return Result{}, err
	}
	totals, err := b.image.Finish(root)
	if err != nil {
		return Result{}, err
	}
	return Result{
		MetaBytes: totals.MetaBytes, DataBytes: totals.DataBytes, Inodes: totals.Inodes,
		OpaqueRoot: b.tree.root.opaque, Dropped: b.dropped,
	}, nil
}
