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

	mu        sync.Mutex
	held      bool            // by the keeper, or should be
	prepared  time.Time       // the last mount
	known     map[string]bool // instances at the last look
	unmounted time.Time       // when one was last not mounted any more
	culled    int64           // bytes
	full      bool            // the kernel wanted space at the last look
}

// UseCache has instances mounted over the kernel's cache from now on. Connect must follow.
func (w *Watcher) UseCache() { w.overCache.Store(true) }

// provideCache sees to it that there is a cache: what the keeper has of an earlier process, or one of our own if there should be one.
func (w *Watcher) provideCache(ctx context.Context, client *keeper.Client) {
	held, err := client.Device(ctx)
	switch {
	case err != nil:
	case held != nil:
		if err = w.adoptCache(*held); err != nil { // nobody else answers either, now that this process has it
			err = errors.Join(err, client.DropDevice(ctx))
		}
	case w.overCache.Load() && w.theCache() == nil:
		err = w.openCache(ctx)
	}
	if err != nil {
		w.o.Log.Error("layers cannot be loaded on demand over fscache", "cause", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.uncached = err
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
	former, err := filepath.Glob(filepath.Join(w.o.Cache.Dir, domainPrefix+"*"))
	for _, dir := range former {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// adoptCache goes on with a cache that a keeper has held for an earlier process. It owns the device.
func (w *Watcher) adoptCache(h keeper.HeldDevice) error {
	c := &cache{w: w, held: true}
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
	var dirs []string
	mounted, err := c.mounted()
	for begin := range mounted {
		found, _ := filepath.Glob(c.w.o.Cache.Find(begin) + "*") // the pattern is right
		dirs = append(dirs, found...)
	}
	errs := []error{err}
	for _, dir := range dirs {
		layer, err := c.w.o.Describe(dir)
		if err == nil && layer.Partial {
			c.w.mu.Lock()
			err = c.w.openLocked(layer)
			c.w.mu.Unlock()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c *cache) serve() {
	c.w.work.Go(func() {
		if err := c.device.Serve(c.w.ctx); err != nil && c.w.ctx.Err() == nil {
			c.w.o.Log.Error("requests over fscache are not answered any more: their readers wait until a restart of the daemon", "cause", err)
		}
	})
}

// mountTime is longer than a mount takes, if it does not fail.
const mountTime = time.Minute

// prepare makes ready for a mount of an instance: the keeper has the device before there is anything to lose.
func (c *cache) prepare(ctx context.Context, client *keeper.Client) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.prepared = time.Now()
	if c.held {
		return nil
	}
	if err := c.give(ctx, client); err != nil {
		return err
	}
	c.held = true
	return nil
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

// mounted are the beginnings of the ids of the instances of which the kernel has a superblock over this cache.
func (c *cache) mounted() (map[string]bool, error) {
	all, err := c.w.kernel.listSuperblocks()
	found := map[string]bool{}
	for _, s := range all {
		if s.domain == c.note.Domain {
			found[s.instance] = true
		}
	}
	return found, err
}

// look culls what nobody has mounted any more, and has the keeper give the device up when nothing is mounted.
func (c *cache) look() {
	mounted, err := c.mounted()
	if err != nil {
		c.w.o.Log.Warn("cannot find out what is mounted over fscache", "cause", err)
		return
	}
	if len(mounted) == 0 {
		c.release()
	}
	full, err := c.device.WantsCulling()
	if err != nil {
		c.w.o.Log.Warn("cannot find out whether the kernel wants space", "cause", err)
	}
	if !c.due(mounted, full) {
		return
	}
	files, bytes, err := c.device.Sweep()
	c.mu.Lock()
	c.culled += bytes
	c.mu.Unlock()
	if err != nil {
		c.w.o.Log.Warn("culling the cache of files", "cause", err)
	} else if files > 0 {
		c.w.o.Log.Info("cache of files culled", "files", files, "bytes", bytes)
	}
}

const (
	// sweepTime is for how long files may appear of what was unmounted: the kernel gives them names some time after.
	sweepTime = 10 * time.Second
	// sweepAfter is how long nothing is swept after a mount was prepared: one that opens a file just when it is culled fails.
	sweepAfter = 5 * time.Second
)

// due says whether files may be there that nobody uses. It is called at each look.
func (c *cache) due(mounted map[string]bool, full bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.known {
		if !mounted[name] {
			c.unmounted = time.Now()
		}
	}
	c.known, c.full = mounted, full
	return full || time.Since(c.unmounted) < sweepTime+sweepAfter && time.Since(c.prepared) > sweepAfter
}

// release has the keeper give the device up: nothing is mounted, and so nothing is to be answered. A keeper that holds nothing can end.
func (c *cache) release() {
	c.w.mu.Lock()
	client := c.w.keeper
	c.w.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.held || client == nil || time.Since(c.prepared) < mountTime {
		return
	}
	ctx, cancel := context.WithTimeout(c.w.ctx, keeperTimeout)
	defer cancel()
	if err := client.DropDevice(ctx); err != nil {
		c.w.o.Log.Warn("the keeper holds the cache's device though nothing is mounted; it is told again", "cause", err)
		return
	}
	c.held = false
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
