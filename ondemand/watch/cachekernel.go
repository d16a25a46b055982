package watch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/cachefiles"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// device is what a cache needs of a cachefiles.Device.
type device interface {
	Serve(context.Context) error
	File() *os.File
	Check() error
	WantsCulling() (bool, error)
	Sweep() (files int, bytes int64, err error)
	Stats() cachefiles.Stats
	Close() error
}

// kernel is what a cache needs of the kernel. Tests have one of their own.
type kernel struct {
	open  func(cachefiles.Options) (device, error)
	adopt func(*os.File, cachefiles.Options) (device, error)
	// fetch asks the keeper for the device.
	fetch func(context.Context, *keeper.Client) (*keeper.HeldDevice, error)
	// superblocks is the directory in which EROFS lists them, as domain,fsid.
	superblocks string
}

var thisKernel = kernel{
	open:        func(o cachefiles.Options) (device, error) { return orNone(cachefiles.Open(o)) },
	adopt:       func(f *os.File, o cachefiles.Options) (device, error) { return orNone(cachefiles.Adopt(f, o)) },
	fetch:       func(ctx context.Context, c *keeper.Client) (*keeper.HeldDevice, error) { return c.Device(ctx) },
	superblocks: "/sys/fs/erofs",
}

// orNone is d, and nil if that is.
func orNone(d *cachefiles.Device, err error) (device, error) {
	if d == nil {
		return nil, err
	}
	return d, err
}

// busyWait is how long a process that has ended may still keep the device busy: its descriptors are closed one after the other.
const busyWait = 3 * time.Second

// openWhenFree opens the device, and waits if it is busy.
func (k kernel) openWhenFree(ctx context.Context, o cachefiles.Options) (device, error) {
	ctx, cancel := context.WithTimeout(ctx, busyWait)
	defer cancel()
	for {
		d, err := k.open(o)
		if !errors.Is(err, cachefiles.ErrBusy) {
			return d, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// superblock is one over a cache of ours. Of the id of its instance the kernel may tell the beginning only.
type superblock struct{ domain, instance string }

func (s superblock) isOf(instance string) bool { return strings.HasPrefix(instance, s.instance) }

// listSuperblocks lists those of all our caches.
func (k kernel) listSuperblocks() ([]superblock, error) {
	entries, err := os.ReadDir(k.superblocks)
	if errors.Is(err, os.ErrNotExist) { // no EROFS
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list superblocks: %w", err)
	}
	var list []superblock
	for _, e := range entries {
		domain, _, _ := strings.Cut(e.Name(), ",")
		if len(domain) != domainBytes || !strings.HasPrefix(domain, domainPrefix) {
			continue
		}
		if instance, ok := cachefiles.Listed(e.Name(), domain); ok {
			list = append(list, superblock{domain, instance})
		}
	}
	return list, nil
}

// OverCache says whether the kernel has a superblock of an instance over the cache: then the instance must stay where it is, for the kernel asks for
// its data by its id, also when they are all here. dead says that it has one over a cache that has gone, whose reads fail.
func (w *Watcher) OverCache(instance string) (live, dead bool, err error) {
	all, err := w.kernel.listSuperblocks()
	domain := w.Domain()
	for _, s := range all {
		switch {
		case !s.isOf(instance):
		case s.domain == domain:
			live = true
		default:
			dead = true
		}
	}
	return live, dead, err
}
