// Package fscache mounts EROFS images over the kernel's cache, which loads them on demand (Linux 6.1 to 7.1, where it is configured).
//
// The kernel knows such an image by its cookies only, and asks whoever serves /dev/cachefiles for the bytes. It has to be served when Mount is
// called, and as long as anything is mounted. The files of the image are looked at, so that one that is missing or cut off is an error of Mount
// as it is with other backends; nothing reads them here.
//
// # What waits
//
// Mount waits in the kernel until the daemon has opened the meta image and delivered what a mount reads of it. The kernel does not give up while
// the device is open: it complains in its log every 20 seconds, and neither a context nor a signal ends the wait. Who serves the cache must not
// wait for a Mount. An unmount does not wait. So that the daemon can be killed meanwhile, each mount is made by a process of its own: see apart.go.
//
// The data are opened in the same way, but a mount reads nothing of them, and returns. If that is refused then, reads fail.
//
// # When the cache is lost
//
// A superblock stays with the cache that it was mounted from. When that has ended, because nobody holds the device any more, everything that
// is not in the page cache fails for ever, with EIO or ENOBUFS. Stale finds such mounts by their domain: each cache must have one of its own.
package fscache

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountapi"
)

// Backend implements fsbackend.Backend. Images without cookies are the next one's business.
type Backend struct{ next fsbackend.Backend }

var _ fsbackend.Backend = (*Backend)(nil)

// New returns a backend. It asks nothing of the kernel yet; see fsbackend/probe for that.
func New(next fsbackend.Backend) *Backend { return &Backend{next: next} }

// Mount implements fsbackend.Backend. It may wait where a context does not end it: see the package's documentation.
func (b *Backend) Mount(ctx context.Context, img fsbackend.Image, target string) error {
	c := img.Cookies
	if c == nil {
		return b.next.Mount(ctx, img, target)
	}
	if err := mount(ctx, img, target); err != nil {
		return fmt.Errorf("mount %s with data %s over fscache (domain_id %s, fsid %s, device %s) on %s: %w",
			img.Meta, img.Data, c.Domain, c.Meta, c.Data, target, err)
	}
	return nil
}

// Unmount implements fsbackend.Backend. The kernel tells the daemon of the cookies' end a moment after the last user of the mount has gone.
func (b *Backend) Unmount(ctx context.Context, target string) error {
	return b.next.Unmount(ctx, target)
}

func mount(ctx context.Context, img fsbackend.Image, target string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	mounted, err := fsbackend.Mounted(target)
	if err != nil || mounted {
		return err
	}
	have, err := sizes(img)
	if err != nil {
		return err
	}
	m, err := mountApart(*img.Cookies)
	if err != nil {
		return explain(err)
	}
	defer m.Close()
	st, err := m.Statfs()
	if err != nil {
		return err
	}
	if blocks := have.blocks(st.Bsize); blocks < st.Blocks {
		return fmt.Errorf("truncated: the image has %d blocks of %d bytes, its files have %d", st.Blocks, st.Bsize, blocks)
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

// fileSizes are those of the files of an image.
type fileSizes []int64

func sizes(img fsbackend.Image) (fileSizes, error) {
	var list fileSizes
	for _, path := range []string{img.Meta, img.Data} {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s: not a regular file", path)
		}
		list = append(list, info.Size())
	}
	return list, nil
}

func (f fileSizes) blocks(size int64) (n uint64) {
	for _, bytes := range f {
		n += uint64(bytes / size)
	}
	return n
}

// explain says what an error means, as far as the kernel tells causes apart.
func explain(err error) error {
	switch {
	case errors.Is(err, mountapi.ErrNoFscache):
		return fmt.Errorf("%w here: %w (needs Linux 6.1 to 7.1 with CONFIG_EROFS_FS_ONDEMAND)", fsbackend.ErrNotSupported, err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("EROFS %w by this kernel (try modprobe erofs): %w", fsbackend.ErrNotSupported, err)
	case errors.Is(err, unix.EEXIST), errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w (the fsid is in use by another mount)", err)
	case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EIO):
		return fmt.Errorf("%w (the cache did not deliver the image: nobody serves it, the daemon refused it, or the disk of the cache has less free "+
			"space than its limits; the daemon's log and dmesg say more)", err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EBADMSG), errors.Is(err, unix.EUCLEAN):
		return fmt.Errorf("%w (dmesg may say what is wrong with the image)", err)
	}
	return err
}
