package watch

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/cachefiles"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// The kernel's cache of files is only ever a copy: what it has was in a data blob before. So nothing of it is kept when nobody has it mounted:
// each time that the device was not handed over by a keeper, the cache is made in a directory of its own, and mounts are made in a domain of their
// own, since one whose device is lost is dead for good. Everything that an earlier cache has left is deleted.

// CacheOptions say how instances are served over the kernel's cache of files (fscache). Without UseCache those are that an earlier process has mounted.
type CacheOptions struct {
	// Dir holds the directories of caches.
	Dir string
	// Limits are about the free space of the filesystem of Dir.
	Limits cachefiles.Limits
	// Find returns the directory in which the files of an instance are, if it is in the store.
	Find func(instance string) string
	// TrialMeta and TrialData are the files of an image that Try mounts, and reads, when a cache was made.
	TrialMeta, TrialData []byte
	Try                  func(ctx context.Context, c Cookies) error
}

// Cookies are the names under which the kernel asks for the files of a mount.
type Cookies struct {
	// Domain is a namespace that mounts of one cache share: those of one data blob have it once.
	Domain string
	// Meta is unique in it. Data is the only device of the image.
	Meta, Data string
}

const (
	// domainPrefix is what all domains begin with; domainBytes is how long they are. They are short because kernels cut what they list.
	domainPrefix = "es"
	domainBytes  = 8
	cacheTag     = "erofs-snapshotter"
)

// trialInstance is the id of what is no instance.
var trialInstance = strings.Repeat("0", 64)

// cacheNote is what the keeper keeps about the device for the next process.
type cacheNote struct {
	Domain string `json:"domain"`
	Dir    string `json:"dir"`
}

// cache is the host's cache of files, of which this process is the daemon.
type cache struct {
	w      *Watcher
	note   cacheNote
	device device

	sweeping sync.Mutex // held while culling; taken before mu

	mu        sync.Mutex
	held      bool            // by the keeper, or should be
	sure      bool            // the keeper has said so
	prepared  time.Time       // the last mount
	known     map[string]bool // instances at the last look
	unmounted time.Time       // when one of them was not mounted any more
	unswept   time.Time       // since when there may be something to cull; zero: there is not
	culled    int64           // bytes
	full      bool            // the kernel wanted space at the last look
}

// UseCache has instances mounted over the kernel's cache from now on. Connect must follow.
func (w *Watcher) UseCache() { w.overCache.Store(true) }

// provideCache sees to it that there is a cache: what the keeper has of an earlier process, or one of our own if there should be one.
func (w *Watcher) provideCache(ctx context.Context, client *keeper.Client, held *keeper.HeldDevice) {
	var err error
	switch {
	case held != nil && w.theCache() == nil:
		if err = w.adoptCache(*held); err != nil { // nobody else answers either, now that this process has it
			w.mu.Lock()
			w.deviceLeft = true
			w.mu.Unlock()
			w.dropDevice(ctx, client)
		}
	case held != nil: // a copy of what we have
		err = held.File.Close()
	case w.theCache() != nil:
	case w.overCache.Load():
		err = w.openCache(ctx, func(o cachefiles.Options) (device, error) { return w.kernel.openWhenFree(ctx, o) })
	default: // a cache that had been used in another mode may have left much
		if deleteErr := w.deleteCaches(""); deleteErr != nil {
			w.o.Log.Warn("files of a former cache are left", "cause", deleteErr)
		}
	}
	w.noCache(err)
}

// openCache makes a cache, with a device that open opens. Nobody else may have one on this host.
func (w *Watcher) openCache(ctx context.Context, open func(cachefiles.Options) (device, error)) error {
	o := w.o.Cache
	note := cacheNote{Domain: (domainPrefix + strings.ToLower(rand.Text()))[:domainBytes]}
	note.Dir = filepath.Join(o.Dir, note.Domain)
	if err := os.MkdirAll(note.Dir, 0o700); err != nil {
		return err
	}
	c := &cache{w: w, note: note}
	options := c.options()
	options.Limits = o.Limits
	device, err := open(options)
	if err != nil {
		return errors.Join(err, os.RemoveAll(note.Dir))
	}
	c.device = device
	w.setCache(c)
	c.serve()
	if err := w.deleteCaches(note.Domain); err != nil {
		w.o.Log.Warn("files of a former cache are left", "cause", err)
	}
	if o.Try == nil {
		return nil
	}
	cookies := c.cookies(trialInstance, int64(len(o.TrialMeta)), int64(len(o.TrialData)))
	if err := o.Try(ctx, cookies); err != nil {
		w.setCache(nil)
		return errors.Join(fmt.Errorf("self-test over fscache: %w", err), device.Close(), os.RemoveAll(note.Dir))
	}
	return nil
}

// deleteCaches deletes what caches of other domains have left. The kernel has given them up: it has one at a time, and that is ours, or no
// keeper has held one.
func (w *Watcher) deleteCaches(but string) error {
	former, err := os.ReadDir(w.o.Cache.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range former {
		if strings.HasPrefix(e.Name(), domainPrefix) && e.Name() != but {
			err = errors.Join(err, os.RemoveAll(filepath.Join(w.o.Cache.Dir, e.Name())))
		}
	}
	return err
}

// adoptCache goes on with a cache that a keeper has held for an earlier process. It owns the device.
func (w *Watcher) adoptCache(h keeper.HeldDevice) error {
	c := &cache{w: w, held: true, sure: true, unmounted: time.Now(), unswept: time.Now()} // what was unmounted meanwhile is not known
	if err := json.Unmarshal(h.Note, &c.note); err != nil {
		return errors.Join(fmt.Errorf("note of the keeper about the cache: %w", err), h.File.Close())
	}
	if err := c.openMounted(); err != nil {
		w.o.Log.Error("layers that are mounted over fscache cannot all be served", "cause", err)
	}
	device, err := w.kernel.adopt(h.File, c.options())
	if errors.Is(err, cachefiles.ErrNoRestore) {
		w.o.Log.Warn("this kernel gives requests of an earlier daemon to no other: reads of missing data in mounts from before get errors until they are mounted again",
			"cause", err)
	} else if err != nil {
		return err
	}
	c.device = device
	w.setCache(c)
	c.serve()
	return nil
}

func (c *cache) options() cachefiles.Options {
	return cachefiles.Options{Dir: c.note.Dir, Tag: cacheTag, Lookup: c.lookup, Log: c.w.o.Log}
}

// openMounted opens the instances that are mounted, so that everything is known when the kernel asks.
func (c *cache) openMounted() error {
	mounted, err := c.mounted()
	errs := []error{err}
	if len(mounted) == 0 {
		return err
	}
	all := filepath.Dir(c.w.o.Cache.Find(trialInstance))
	names, err := os.ReadDir(all)
	errs = append(errs, err)
	for _, e := range names {
		if !isAmong(e.Name(), mounted) {
			continue
		}
		layer, err := c.w.o.Describe(filepath.Join(all, e.Name()))
		if err == nil && layer.Partial {
			c.w.mu.Lock()
			err = c.w.openLocked(layer)
			c.w.mu.Unlock()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// isAmong says whether an instance's id has one of the beginnings.
func isAmong(instance string, beginnings map[string]bool) bool {
	for begin := range beginnings {
		if strings.HasPrefix(instance, begin) {
			return true
		}
	}
	return false
}

func (c *cache) serve() {
	c.w.work.Go(func() {
		if err := c.device.Serve(c.w.ctx); err != nil && c.w.ctx.Err() == nil {
			c.lost(err)
		}
	})
}

// mountTime is longer than a mount takes, if it does not fail.
const mountTime = time.Minute

// prepare makes ready for a mount of an instance: the keeper has the device before there is anything to lose.
func (c *cache) prepare(ctx context.Context, client *keeper.Client) error {
	c.sweeping.Lock()
	defer c.sweeping.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.prepared = time.Now()
	return c.holdLocked(ctx, client)
}

// cookies are the names for a new mount.
func (c *cache) cookies(instance string, meta, data int64) Cookies {
	var mount [4]byte
	rand.Read(mount[:])
	return Cookies{
		Domain: c.note.Domain,
		Meta:   cachefiles.Key{Instance: instance, Size: meta, Mount: uint64(binary.LittleEndian.Uint32(mount[:])) | 1}.String(),
		Data:   cachefiles.Key{Instance: instance, Size: data}.String(),
	}
}

// setCache is called with nil when the cache has gone.
func (w *Watcher) setCache(c *cache) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cache = c
}

func (w *Watcher) theCache() *cache {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cache
}

// Domain is that of mounts over the cache, "" without one. Those of other domains are dead.
func (w *Watcher) Domain() string {
	c := w.theCache()
	if c == nil {
		return ""
	}
	return c.note.Domain
}
