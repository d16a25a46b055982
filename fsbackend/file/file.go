// Package file mounts EROFS images whose meta image and data blob are complete local files.
//
// Since Linux 6.12 the kernel mounts the files as they are ("file-backed"). Where it does not (an older kernel, or a root directory
// on tmpfs or overlayfs), both files get a loop device. Loop devices clear themselves with their last user, so neither an
// error nor a crash at any point leaves one behind.
//
// The blocks of the data blob are read through its page cache, or with direct I/O if that is asked for; see Direct.
//
// A mount is made and checked before it is attached to its target: it appears there whole, or not at all.
package file

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/loop"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountapi"
)

// Mode says how images reach the kernel.
type Mode int

const (
	// Auto mounts file-backed, and over loop devices where the kernel answers that it needs a block device.
	Auto Mode = iota
	// File mounts file-backed only.
	File
	// Loop mounts over loop devices only.
	Loop
)

// Options configure a Backend. The zero value works.
type Options struct {
	Mode   Mode
	Direct Direct
}

// Backend implements fsbackend.Backend.
type Backend struct {
	mode   Mode
	direct Direct
}

var _ fsbackend.Backend = (*Backend)(nil)

// New returns a backend. It asks nothing of the kernel yet; see fsbackend/probe for that.
func New(o Options) *Backend { return &Backend{mode: o.Mode, direct: o.Direct} }

// Mount implements fsbackend.Backend.
func (b *Backend) Mount(ctx context.Context, img fsbackend.Image, target string) error {
	err := b.mountOnce(ctx, img, target)
	if err != nil {
		return fmt.Errorf("mount %s with data %s on %s: %w", img.Meta, img.Data, target, err)
	}
	return nil
}

// Unmount implements fsbackend.Backend. Loop devices go with the last user of the superblock.
func (b *Backend) Unmount(_ context.Context, target string) error {
	return fsbackend.Unmount(target)
}

func (b *Backend) mountOnce(ctx context.Context, img fsbackend.Image, target string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	mounted, err := fsbackend.Mounted(target)
	if err != nil || mounted {
		return err
	}
	f, err := openImage(img)
	if err != nil {
		return err
	}
	defer f.close()
	m, err := b.superblock(ctx, f, img.OnDemand)
	if err != nil {
		return hint(err)
	}
	defer m.Close()
	if err := f.check(m); err != nil {
		return err
	}
	if img.Check != nil {
		if err := img.Check(m.Path() + "/."); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return m.Attach(target)
}

// superblock mounts the image without attaching it anywhere. In mode Auto each image is tried file-backed first: whether that
// works depends on the filesystem of the files too, so no answer holds for all images. Only ENOTBLK means that a block device would
// do; with any other error the loop device would hide what is wrong.
//
// Data that are missing must be asked for in the kernel's name of the file, which a loop device's thread would hide; and with direct I/O the
// kernel would ask for each piece that it reads.
func (b *Backend) superblock(ctx context.Context, f *imageFiles, onDemand bool) (*mountapi.Mount, error) {
	if onDemand {
		return mountapi.EROFS(f.source(), f.device())
	}
	if b.mode == Loop {
		return b.overLoop(ctx, f)
	}
	m, err := b.fileBacked(f)
	if b.mode == File || !errors.Is(err, unix.ENOTBLK) {
		return m, err
	}
	m, lerr := b.overLoop(ctx, f)
	if lerr != nil {
		return nil, fmt.Errorf("file-backed: %w; over loop devices: %w", err, lerr)
	}
	return m, nil
}

// fileBacked mounts the files as they are. A kernel without the option for direct I/O has the last word by a mount without it.
func (b *Backend) fileBacked(f *imageFiles) (*mountapi.Mount, error) {
	if b.direct.now(f.data) {
		if m, err := mountapi.EROFSDirect(f.source(), f.device()); !errors.Is(err, mountapi.ErrNoDirect) {
			return m, err
		}
	}
	return mountapi.EROFS(f.source(), f.device())
}

// overLoop mounts loop devices. As with file-backed mounts, direct I/O is for data only: metadata is read in small pieces, which
// are slow without the read-ahead of the page cache.
func (b *Backend) overLoop(ctx context.Context, f *imageFiles) (*mountapi.Mount, error) {
	// The superblock holds the devices in the end.
	meta, err := loop.Attach(ctx, f.meta)
	if err != nil {
		return nil, err
	}
	defer meta.Close()
	attach := loop.Attach
	if b.direct.now(f.data) {
		attach = loop.AttachDirect
	}
	data, err := attach(ctx, f.data)
	if err != nil {
		return nil, err
	}
	defer data.Close()
	return mountapi.EROFS(meta[0].Path, data[0].Path)
}

// hint says what to do about errors that mean that this kernel cannot.
func hint(err error) error {
	switch {
	case errors.Is(err, loop.ErrNone):
		return fmt.Errorf("%w: %w", fsbackend.ErrNotSupported, err)
	case errors.Is(err, unix.ENOTBLK):
		return fmt.Errorf("file-backed mounts %w here (need Linux 6.12 and a disk filesystem such as ext4, xfs or btrfs; "+
			"mode \"auto\" uses loop devices instead): %w", fsbackend.ErrNotSupported, err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("EROFS %w by this kernel (try modprobe erofs): %w", fsbackend.ErrNotSupported, err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EBADMSG), errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EIO):
		return fmt.Errorf("%w (dmesg may say what is wrong with the image)", err)
	}
	return err
}
