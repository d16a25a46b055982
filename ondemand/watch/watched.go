package watch

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/fanotify"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// watched is an instance that is open.
type watched struct {
	w     *Watcher
	layer Layer
	held  string // its name for the keeper
	data  *os.File
	file  os.FileInfo // of data
	meta  *os.File    // the meta image, to see who else has it open
	blob  *blob.Blob
	fill  *ondemand.Layer

	testing  atomic.Bool                        // missing data are refused, see selfTest
	checking atomic.Pointer[context.CancelFunc] // ends a check that runs
	orphan   atomic.Pointer[string]             // its directory, once it has left the store
	asks     asks                               // over the cache
	closed   atomic.Bool                        // changed with mu held

	mu       sync.Mutex
	group    *fanotify.Group // nil: not watched
	asked    *fanotify.Group // the same, also when it is over
	tested   bool            // a mount was tested, or is older than this process
	complete bool
	checked  bool
}

// openAnew opens an instance that no keeper holds.
func (w *Watcher) openAnew(layer Layer) (*watched, error) {
	data, err := os.OpenFile(filepath.Join(layer.Dir, blob.DataName), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	e, err := w.open(layer, data)
	if err != nil {
		return nil, errors.Join(err, data.Close())
	}
	return e, nil
}

// open opens an instance. data is its data blob, opened before it was marked; it is e's unless there is an error.
func (w *Watcher) open(layer Layer, data *os.File) (e *watched, err error) {
	e = &watched{w: w, layer: layer, held: heldName(layer.Name), data: data, checked: layer.Check == nil}
	if e.file, err = data.Stat(); err != nil {
		return nil, err
	}
	meta, err := os.Open(filepath.Join(layer.Dir, metaName))
	if err != nil {
		return nil, err
	}
	e.meta = meta
	defer func() {
		if err != nil {
			err = errors.Join(err, meta.Close())
		}
	}()
	if e.blob, err = blob.Open(layer.Dir, layer.ID, blob.Options{Data: data, Syncer: w.o.Syncer}); err != nil {
		return nil, err
	}
	if !e.isIn(layer.Dir) { // it has left the store, and what was opened beside it may be of another one that was made since
		return nil, errors.Join(fmt.Errorf("%s is not in %s any more", blob.DataName, layer.Dir), e.blob.Close())
	}
	if err := e.blob.Lost(); err != nil {
		w.o.Log.Warn("data of a layer may have to be fetched again", "instance", layer.Name, "cause", err)
	}
	added := make(chan struct{}) // the engine may begin before it has returned
	o := ondemand.LayerOptions{
		Name: layer.Digest, Origin: layer.Origin, Source: layer.Source, PrefetchUntil: layer.PrefetchUntil,
		Completed: func() {
			<-added
			w.spawn(e.completed)
		},
	}
	if layer.Check != nil {
		o.Complete = func(ctx context.Context, pace ondemand.Pace) error {
			<-added
			return e.check(ctx, pace)
		}
	}
	e.fill = w.o.Engine.Add(e.blob, o)
	close(added)
	return e, nil
}

// heldName is like no other: an instance may be made again while its first files still serve a container, and even get their inode number while
// the keeper has yet to be told to drop them.
func heldName(instance string) string { return instance + "." + rand.Text() }

// adopt goes on with a group that the keeper has held under a name.
func (e *watched) adopt(held string, g *fanotify.Group) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.held, e.tested = held, true
	e.serve(g)
}

// watch has reads of missing data answered, unless that is done: by the cache, or by a group that watches the data blob.
func (e *watched) watch(ctx context.Context, client *keeper.Client) (*Mounting, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed.Load() {
		return nil, fmt.Errorf("layer instance %s was closed", e.layer.Name)
	}
	if e.complete {
		return nil, nil
	}
	if e.group == nil && e.w.overCache.Load() {
		return e.overCache(ctx, client)
	}
	if e.tested { // what is true of one mount is true of all
		return &Mounting{}, nil
	}
	if e.group == nil {
		g, err := fanotify.New(e.data)
		if err != nil {
			return nil, err
		}
		if err := client.Hold(ctx, e.holding(g)); err != nil {
			return nil, errors.Join(fmt.Errorf("hand data blob to the keeper: %w", err), g.Close())
		}
		e.serve(g)
	}
	return &Mounting{Check: e.test(e.group)}, nil
}

// overCache is watch over the kernel's cache of files. It is called with mu held.
func (e *watched) overCache(ctx context.Context, client *keeper.Client) (*Mounting, error) {
	e.w.mu.Lock()
	c, err := e.w.cache, e.w.cacheReady()
	e.w.mu.Unlock()
	if err != nil {
		return nil, err
	}
	meta, err := e.meta.Stat()
	if err != nil {
		return nil, err
	}
	if err := c.prepare(ctx, client); err != nil {
		return nil, err
	}
	cookies := c.cookies(e.layer.Name, meta.Size(), e.file.Size())
	return &Mounting{Cookies: &cookies}, nil
}

// test is the check of a mount as long as none has passed.
func (e *watched) test(g *fanotify.Group) func(root string) error {
	return func(root string) error {
		if err := e.selfTest(g, root); err != nil {
			return err
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		e.tested = true
		return nil
	}
}

// path is the directory of its files, or the last one that they had: others may be there by now, see isIn.
func (e *watched) path() string {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", e.data.Fd()))
	if err != nil {
		return e.layer.Dir
	}
	return filepath.Dir(path)
}

// isIn says whether its data blob is the one in a directory.
func (e *watched) isIn(dir string) bool {
	if _, err := e.data.Stat(); err != nil { // closed: another file may have got its number
		return false
	}
	there, err := os.Stat(filepath.Join(dir, blob.DataName))
	return err == nil && os.SameFile(e.file, there)
}

// orphanDir is the directory of an orphan, "" if its files are not there any more: then nothing that is there may be deleted.
func (e *watched) orphanDir() string {
	if dir := e.orphan.Load(); dir != nil && e.isIn(*dir) {
		return *dir
	}
	return ""
}

// alive says whether a superblock of the instance is left, also when its files have no names any more.
func (e *watched) alive() (bool, error) { return openElsewhere(e.meta) }

// Ready implements fanotify.Filler.
func (e *watched) Ready(off, n int64) bool { return e.fill.Ready(off, n) }

// Fill implements fanotify.Filler.
func (e *watched) Fill(ctx context.Context, off, n int64) error {
	if e.testing.Load() {
		return fanotify.ErrSelfTest
	}
	return e.fill.Fill(ctx, off, n)
}

func (e *watched) holding(g *fanotify.Group) keeper.Held {
	group, journal := g.Files()
	return keeper.Held{Name: e.held, Group: group, Data: e.data, Journal: journal}
}

// serve answers the group. It is called with mu held.
func (e *watched) serve(g *fanotify.Group) {
	e.group, e.asked = g, g
	e.w.work.Go(func() {
		// An earlier process may have ended after it had ended the watch and before the keeper dropped the group.
		if err := g.Serve(e.w.ctx, e); err != nil && e.w.ctx.Err() == nil && e.missesData() {
			e.w.o.Log.Error("requests for data of a layer are not answered any more: reads of missing data wait until a restart of the daemon",
				"instance", e.layer.Name, "cause", err)
		}
	})
}

func (e *watched) missesData() bool {
	p := e.blob.Progress()
	return p.PresentExtents < p.Extents
}

func (e *watched) isWatched() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.group != nil
}

// hold gives a keeper that has just come what it should hold.
func (e *watched) hold(ctx context.Context, client *keeper.Client) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.group == nil || e.closed.Load() {
		return nil
	}
	return client.Hold(ctx, e.holding(e.group))
}

// check is the engine's background work.
func (e *watched) check(ctx context.Context, pace ondemand.Pace) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e.checking.Store(&cancel)
	defer e.checking.Store(nil)
	if e.orphan.Load() != nil {
		return nil // only what is read is fetched
	}
	err := e.layer.Check(ctx, pace, e.fill.Put)
	if e.orphan.Load() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.checked = true
	e.mu.Unlock()
	e.w.spawn(e.closeIfDone)
	return nil
}

// orphaned says that the files are in dir, and ends what is not needed for those who read.
func (e *watched) orphaned(dir string) {
	e.orphan.Store(&dir)
	if cancel := e.checking.Load(); cancel != nil {
		(*cancel)()
	}
}

// completed is called when all data are here: it makes that durable, and then nobody needs to watch any more (kernel.md 2.7). If this process
// ends meanwhile the next one does it.
func (e *watched) completed() {
	if e.closed.Load() {
		return
	}
	err := e.finish()
	if err != nil && e.w.ctx.Err() != nil {
		return
	}
	if err != nil {
		e.w.o.Log.Error("layer has all its data, but goes on being watched", "instance", e.layer.Name, "cause", err)
		return
	}
	e.closeIfDone()
}

func (e *watched) finish() error {
	if err := e.blob.Complete(); err != nil {
		return err
	}
	if e.orphan.Load() == nil {
		if err := e.layer.Complete(); err != nil {
			return err
		}
	}
	watched, err := e.unwatch()
	if watched && err == nil {
		e.w.o.Log.Info("layer is complete", "instance", e.layer.Name)
		e.w.drop(e.held)
	}
	return err
}

// unwatch ends the watch of a data blob that misses nothing, if there is one.
func (e *watched) unwatch() (watched bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.complete = true
	if e.group == nil {
		return false, nil
	}
	if err := e.group.Finish(); err != nil {
		return true, err
	}
	e.group = nil
	return true, nil
}

// closeIfDone closes e if nothing remains to be done for it.
func (e *watched) closeIfDone() {
	e.mu.Lock()
	done := e.complete && (e.checked || e.orphan.Load() != nil)
	e.mu.Unlock()
	if !done {
		return
	}
	dir := e.orphanDir()
	if err := e.close(); err != nil {
		e.w.o.Log.Warn("closing the data blob of a complete layer", "instance", e.layer.Name, "cause", err)
	}
	e.w.forget(e)
	if dir != "" {
		e.w.o.Gone(dir)
	}
}

// abandon ends serving an orphan that nobody reads from any more.
func (e *watched) abandon() error {
	e.mu.Lock()
	group := e.group
	e.group, e.complete = nil, true
	e.mu.Unlock()
	var err error
	if group != nil {
		err = group.Close()
		e.w.drop(e.held)
	}
	return errors.Join(err, e.close())
}

// close closes the descriptors of this process.
func (e *watched) close() error {
	e.mu.Lock()
	if e.closed.Load() {
		e.mu.Unlock()
		return nil
	}
	e.closed.Store(true)
	group := e.group
	e.mu.Unlock()
	e.fill.Close()
	var err error
	if group != nil {
		err = group.Close()
	}
	return errors.Join(err, e.blob.Close(), e.meta.Close(), e.data.Close())
}
