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
			err = errors.Join(err, client.DropDevice(ctx))
		}
	case held != nil: // a copy of what we have
		err = held.File.Close()
	case w.theCache() != nil:
	case w.overCache.Load():
		err = w.openCache(ctx)
	default: // a cache that had been used in another mode may have left much
		if deleteErr := w.deleteCaches(); deleteErr != nil {
			w.o.Log.Warn("files of a former cache are left", "cause", deleteErr)
		}
	}
	w.noCache(err)
}

// After cacheRetry it is tried again to have a cache: another process had the device, or the disk was full. That doubles up to cacheRetryMost.
const (
	cacheRetry     = 15 * time.Second
	cacheRetryMost = 5 * time.Minute
)

// retryCache has a cache made if there should be one and it could not be made.
func (w *Watcher) retryCache(ctx context.Context) {
	w.mu.Lock()
	due := w.overCache.Load() && w.connected && w.cache == nil && w.uncached != nil && time.Since(w.triedCache) >= w.cacheRetry
	w.mu.Unlock()
	if due {
		w.noCache(w.openCache(ctx))
	}
}

// noCache notes why there is no cache; nil: there is one, or there need not be.
func (w *Watcher) noCache(err error) {
	w.mu.Lock()
	former, again := w.uncached, w.cacheRetry
	w.uncached, w.triedCache = err, time.Now()
	if former != nil {
		w.cacheRetry = min(2*w.cacheRetry, cacheRetryMost)
		again = w.cacheRetry
	}
	w.mu.Unlock()
	switch {
	case err != nil:
		w.o.Log.Error("layers cannot be loaded on demand over fscache", "cause", err, "again_after", again)
	case err == nil && former != nil:
		w.o.Log.Info("layers can be loaded on demand over fscache again")
	}
}

// cacheReady is why instances cannot be mounted over the cache although they should be. It is called with mu held.
func (w *Watcher) cacheReady() error {
	switch {
	case !w.overCache.Load() || w.cache != nil:
		return nil
	case w.uncached != nil:
		return w.uncached
	}
	return errors.New("there is no cache of files yet")
}

// openCache makes a cache. Nobody else may have one on this host.
func (w *Watcher) openCache(ctx context.Context) error {
	o := w.o.Cache
	note := cacheNote{Domain: (domainPrefix + strings.ToLower(rand.Text()))[:domainBytes]}
	note.Dir = filepath.Join(o.Dir, note.Domain)
	if err := w.deleteCaches(); err != nil {
		return err
	}
	if err := os.MkdirAll(note.Dir, 0o700); err != nil {
		return err
	}
	c := &cache{w: w, note: note}
	options := c.options()
	options.Limits = o.Limits
	device, err := w.kernel.openWhenFree(ctx, options)
	if err != nil {
		return errors.Join(err, os.RemoveAll(note.Dir))
	}
	c.device = device
	c.serve()
	w.setCache(c)
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

// deleteCaches deletes what earlier caches have left. The kernel has given them up, or the device would be busy.
func (w *Watcher) deleteCaches() error {
	former, err := os.ReadDir(w.o.Cache.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range former {
		if strings.HasPrefix(e.Name(), domainPrefix) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(w.o.Cache.Dir, e.Name())))
		}
	}
	return err
}

// adoptCache goes on with a cache that a keeper has held for an earlier process. It owns the device.
func (w *Watcher) adoptCache(h keeper.HeldDevice) error {
	c := &cache{w: w, held: true, unmounted: time.Now(), unswept: time.Now()} // what was unmounted meanwhile is not known
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

// lost gives the device up, which cannot be served any more: what is mounted fails, instead of waiting for ever. Another cache is made later.
func (c *cache) lost(cause error) {
	w := c.w
	w.o.Log.Error("requests over fscache cannot be answered any more: reads of what is mounted fail; restart the daemon, which then names the containers", "cause", cause)
	w.mu.Lock()
	client := w.keeper
	if w.cache == c {
		w.cache = nil
	}
	w.mu.Unlock()
	w.noCache(cause)
	errs := []error{c.device.Close()}
	if client != nil {
		ctx, cancel := context.WithTimeout(w.ctx, keeperTimeout)
		defer cancel()
		errs = append(errs, client.DropDevice(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		w.o.Log.Error("the device of the cache was not given up: readers wait", "cause", err)
	}
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

// hold gives a keeper that has just come the device, if anything is mounted.
func (c *cache) hold(ctx context.Context, client *keeper.Client) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.held {
		return nil
	}
	return c.give(ctx, client) // after an error it should be held all the same, so the next keeper gets it
}

// holdLocked has the keeper hold the device, unless it does. It is called with mu held.
func (c *cache) holdLocked(ctx context.Context, client *keeper.Client) error {
	if c.held {
		return nil
	}
	if err := c.give(ctx, client); err != nil {
		return err
	}
	c.held = true
	return nil
}

// give has a keeper hold the device.
func (c *cache) give(ctx context.Context, client *keeper.Client) error {
	note, err := json.Marshal(c.note)
	if err != nil {
		return err
	}
	return client.HoldDevice(ctx, keeper.HeldDevice{Note: note, File: c.device.File()})
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
