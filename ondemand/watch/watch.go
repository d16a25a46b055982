// Package watch keeps lazy instances served: it joins the data blob of each (package blob), the engine that fills it (package ondemand), the
// kernel's requests (package fanotify) and the process that holds on to all of it (package keeper).
//
//	Open ──► opened: data can be fetched ──Mount──► watched: reads are answered ──all data here──► complete ──checked──► closed
//	                                                    │ Left
//	                                                    ▼
//	                                                  orphan: still answered, until nobody has the mount any more ──► closed
//
// What must be right, whatever fails:
//
//   - A data blob is marked, and its group held by the keeper, before the instance is mounted; and its write descriptor is opened before it is
//     marked (kernel.md 2.4, 2.8).
//   - The last descriptor of a group closes only when no data are missing, or when the superblock that reads them has gone. Whether it has is asked
//     of the kernel by a lease on the meta image, which every superblock of the instance keeps open; see Alive. For what is open that is asked of
//     a descriptor, so it does not matter where the files are now, or whether they have names at all.
//   - A keeper that is there and does not answer may hold anything. What it may hold is not opened, mounted or called unwatched before it answers,
//     or is certainly gone; see Unsure.
//   - When the process ends, for whatever reason, requests stay unanswered; the keeper has everything, and the next process goes on.
//
// The package knows no snapshots and no registries: whoever uses it describes an instance by a Layer. Directories may be renamed; what is open
// stays open.
package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// metaName is the meta image in the directory of an instance. Together with blob.DataName it is what a superblock has open.
const metaName = "meta.erofs"

// Layer describes an instance.
type Layer struct {
	// Name is the instance id in hex, ID the same.
	Name string
	ID   [32]byte
	// Dir is its directory.
	Dir string
	// Digest is that of the layer, for messages.
	Digest string
	// Origin is the host that its bytes come from, which it shares with other layers.
	Origin string
	// Source is where its bytes come from, PrefetchUntil how many from the beginning are wanted first.
	Source        ondemand.Source
	PrefetchUntil int64
	// Partial says that, as far as is recorded, data are missing.
	Partial bool
	// Check reads the whole layer, gives the bytes of extents to put, and keeps the result. After nil it is not called again. Nil: there
	// is nothing to check.
	Check func(ctx context.Context, pace ondemand.Pace, put func(int, []byte) error) error
	// Complete is called when all data are here and on stable storage; from then on the instance needs nobody.
	Complete func() error
}

// Options of a Watcher.
type Options struct {
	Engine *ondemand.Engine
	// Describe describes the instance in a directory: one that the keeper has held for an earlier process.
	Describe func(dir string) (Layer, error)
	// Keeper is the address of the keeper's socket; Start starts one if nobody listens there.
	Keeper string
	Start  func(context.Context) error
	// Cache is about instances that are served over the kernel's cache of files, instead of by fanotify.
	Cache CacheOptions
	// Syncer makes data durable some time after they were written.
	Syncer *blob.Syncer
	// Connected is called when another keeper has come, which does not have the secret.
	Connected func()
	// Settled is called by Run when it has become known what the keeper holds, or that there is none, after Connect had returned ErrUnsure. An
	// error ends Run.
	Settled func(context.Context) error
	// Lost is called by Run when the kernel's cache was lost: mounts over it are dead, see Domain. An error ends Run.
	Lost func(context.Context) error
	// Gone is called with the directory of an orphan that nobody reads from any more. Its files can be deleted.
	Gone func(dir string)
	// Secret is called with what an earlier process gave the keeper to keep, nil if nothing.
	Secret func(*os.File)
	Log    *slog.Logger
}

// Watcher keeps instances served. Safe for concurrent use.
type Watcher struct {
	o    Options
	ctx  context.Context // of all that serves
	stop context.CancelFunc
	work sync.WaitGroup
	// overCache says that instances are mounted over the kernel's cache.
	overCache atomic.Bool
	kernel    kernel
	dropping  sync.Mutex // of the device; taken before mu

	mu     sync.Mutex
	closed bool
	keeper *keeper.Client // nil while none is connected
	since  time.Time      // when that changed
	past   Totals         // of instances that are closed
	// connected says that what an earlier process had left with a keeper was taken over.
	connected bool
	unsure    error  // why it is not known what a keeper holds, nil if it is
	cache     *cache // nil: there is none
	uncached  error  // why, if there should be one
	// triedCache is when it was tried to have one, cacheRetry how long after that it is tried again.
	triedCache time.Time
	cacheRetry time.Duration
	deviceLeft bool    // the keeper may hold the device of a cache that is lost
	lostMounts bool    // Lost is to be called
	stuck      []stuck // what the keeper holds and cannot be served
	current    map[string]*watched
	orphans    map[*watched]struct{}
	dropped    map[string]struct{} // names that the keeper may hold although nobody needs it
	changed    chan struct{}       // closed and replaced when keeper changes
}

// New returns a Watcher. Connect must follow.
func New(o Options) *Watcher {
	w := &Watcher{o: o, kernel: thisKernel, current: map[string]*watched{}, orphans: map[*watched]struct{}{}, dropped: map[string]struct{}{}, changed: make(chan struct{}),
		cacheRetry: cacheRetry}
	w.ctx, w.stop = context.WithCancel(context.Background())
	return w
}

// Open makes an instance known: from now on its data are fetched, in the background too. It does nothing for one that is open. One that was made
// anew has other files; those that are open are an orphan's then. While the Watcher is unsure the error is ErrUnsure: what is written through a
// descriptor that was opened after the data blob was marked waits for whoever answers.
func (w *Watcher) Open(layer Layer) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return errors.New("the daemon is stopping")
	}
	if w.unsure != nil {
		return w.unsure
	}
	return w.openLocked(layer)
}

// openLocked is called with mu held.
func (w *Watcher) openLocked(layer Layer) error {
	if cause := w.stuckIn(layer.Dir); cause != nil {
		return fmt.Errorf("layer instance %s cannot be served: %w", layer.Name, cause)
	}
	if e := w.current[layer.Name]; e != nil {
		if e.isIn(layer.Dir) {
			return nil
		}
		w.leave(e, e.path())
	}
	e, err := w.openAnew(layer)
	if err != nil {
		return fmt.Errorf("open data blob of layer instance %s: %w", layer.Name, err)
	}
	w.current[layer.Name] = e
	return nil
}

// Mounting is how an instance has to be mounted.
type Mounting struct {
	// Check finds out whether reads are answered with a mount that nobody else has yet. It may be nil.
	Check func(root string) error
	// Cookies, if set, say that it has to be mounted over the kernel's cache of files.
	Cookies *Cookies
}

// Mount makes ready for a mount of an instance that is open: when it returns, reads of its data are answered. It returns nil if no data are missing
// any more.
func (w *Watcher) Mount(ctx context.Context, name string) (*Mounting, error) {
	client, err := w.waitKeeper(ctx)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	e := w.current[name] // looked at now: another one may have come with the keeper
	w.mu.Unlock()
	if e == nil {
		return nil, fmt.Errorf("layer instance %s is not open", name)
	}
	return e.watch(ctx, client)
}

// Left says that an instance has left the store and that its files are in dir now. It is still served there while somebody reads from it.
func (w *Watcher) Left(name, dir string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e := w.current[name]; e != nil {
		w.leave(e, dir)
	}
}

// leave is called with mu held.
func (w *Watcher) leave(e *watched, dir string) {
	delete(w.current, e.layer.Name)
	e.orphaned(dir)
	w.orphans[e] = struct{}{}
}

// Watches says whether reads of an instance's data are answered, be it with errors.
func (w *Watcher) Watches(name string) bool {
	if w.Marked(name) {
		return true
	}
	live, _, err := w.OverCache(name)
	return live && err == nil
}

// Marked says whether the data blob of an instance is watched by fanotify: whoever opens it waits for answers.
func (w *Watcher) Marked(name string) bool {
	w.mu.Lock()
	e := w.current[name]
	held := slices.ContainsFunc(w.stuck, func(s stuck) bool { return filepath.Base(s.dir) == name })
	w.mu.Unlock()
	return held || e != nil && e.isWatched()
}

// Secret gives the keeper something to keep for the next process; see keeper.Client.Secret. Without a keeper it is given to the next one.
func (w *Watcher) Secret(ctx context.Context, f *os.File) error {
	w.mu.Lock()
	client, err := w.keeper, w.noKeeper()
	w.mu.Unlock()
	if client == nil {
		return err
	}
	return client.Secret(ctx, f)
}

// all returns what is served.
func (w *Watcher) all() []*watched {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.allLocked()
}

// allLocked is called with mu held.
func (w *Watcher) allLocked() []*watched {
	return append(slices.Collect(maps.Values(w.current)), slices.Collect(maps.Keys(w.orphans))...)
}

// forget takes e away, which is closed.
func (w *Watcher) forget(e *watched) {
	last := e.report()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.remove(e) { // that all is here and that it was checked may be found at the same time
		w.past.add(last)
	}
}

// remove takes e away, and says whether it was there. It is called with mu held.
func (w *Watcher) remove(e *watched) (known bool) {
	_, known = w.orphans[e]
	delete(w.orphans, e)
	if w.current[e.layer.Name] == e {
		known = true
		delete(w.current, e.layer.Name)
	}
	return known
}

// Close stops serving, and leaves everything to the keeper. Run must have returned. It may be called again.
func (w *Watcher) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return nil
	}
	w.closed = true
	client := w.keeper
	w.mu.Unlock()
	w.stop()
	var errs []error
	if c := w.theCache(); c != nil { // before what it needs: what is not answered is the next process's
		errs = append(errs, c.device.Close())
	}
	for _, e := range w.all() {
		errs = append(errs, e.close())
	}
	w.work.Wait()
	if client != nil {
		w.dropLeft()
		ctx, cancel := context.WithTimeout(context.Background(), keeperTimeout)
		defer cancel()
		errs = append(errs, client.Release(ctx)) // no group is read any more
	}
	return errors.Join(errs...)
}
