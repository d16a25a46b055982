package watch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/fanotify"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// ErrUnsure says that a keeper is there and has not said yet what it holds. Its readers wait, and nothing is lost; but whether a given instance is
// among what it holds is not known.
var ErrUnsure = errors.New("it is not known which layers are answered for")

// Connect takes over what the keeper holds, and serves it. It must have returned before anything else in the root is touched: what is held may be
// what containers read from. An error means that nothing can be watched until Run finds a keeper. It is ErrUnsure if one is there all the same, and
// did not answer in time; otherwise it is certain that there is none.
//
// Run calls it again as long as it has not succeeded. What is open by then stays open, but for what the keeper holds itself.
func (w *Watcher) Connect(ctx context.Context) error {
	client, held, secret, err := w.dial(ctx)
	if err != nil {
		return w.notConnected(err)
	}
	device, err := w.kernel.fetch(ctx, client)
	if err != nil { // as if nothing had been handed out: what it holds may be mounted
		return w.notConnected(errors.Join(err, giveBack(client, held, secret)))
	}
	if w.o.Secret != nil {
		w.o.Secret(secret)
	}
	for _, h := range held {
		g, err := fanotify.Adopt(h.Group, h.Journal, h.Data)
		if err != nil {
			w.noteStuck(h, err)
			w.o.Log.Error("what the keeper holds cannot be answered: its readers wait", "held", h.Name, "cause", errors.Join(err, h.Data.Close()))
			continue
		}
		if err := w.takeOver(h, g); err != nil {
			w.noteStuck(h, err)
			w.o.Log.Error("data that the keeper holds cannot be served: reads that need missing data get errors", "held", h.Name, "cause", err)
			w.refuse(h, g)
		}
	}
	w.provideCache(ctx, client, device)
	w.setKeeper(client)
	return nil
}

// giveBack closes what a keeper has handed out, and the connection.
func giveBack(client *keeper.Client, held []keeper.Held, secret *os.File) error {
	errs := []error{client.Close()}
	for _, h := range held {
		errs = append(errs, h.Group.Close(), h.Data.Close(), h.Journal.Close())
	}
	if secret != nil {
		errs = append(errs, secret.Close())
	}
	return errors.Join(errs...)
}

// notConnected finds out what it means that the keeper could not be connected.
func (w *Watcher) notConnected(err error) error {
	there := keeper.Gone(w.o.Keeper)
	if there != nil {
		err = fmt.Errorf("%w: %w, and %w\n  find out why it does not answer; do not kill it: it may be the only one that keeps missing data from being read as zeros",
			ErrUnsure, err, there)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unsure = nil
	if there != nil {
		w.unsure = err
	}
	return err
}

// Unsure says why it is not known what a keeper holds; nil if it is known.
func (w *Watcher) Unsure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.unsure
}

// dial connects to the keeper, which is started if there is none.
func (w *Watcher) dial(ctx context.Context) (*keeper.Client, []keeper.Held, *os.File, error) {
	client, held, secret, err := keeper.Dial(ctx, w.o.Keeper)
	if err == nil || !w.mayStart() {
		return client, held, secret, err
	}
	if err := w.o.Start(ctx); err != nil {
		return nil, nil, nil, err
	}
	return keeper.Dial(ctx, w.o.Keeper)
}

// mayStart says whether a keeper can be started: two cannot have one address.
func (w *Watcher) mayStart() bool { return w.o.Start != nil && keeper.Gone(w.o.Keeper) == nil }

// takeOver serves what a keeper has held for an earlier process, and owns its descriptors unless there is an error.
func (w *Watcher) takeOver(h keeper.Held, g *fanotify.Group) error {
	e, dir, err := w.openHeld(h)
	if err != nil {
		return err
	}
	e.adopt(h.Name, g)
	if former := w.put(e, dir); former != nil {
		// It was opened after its data blob was marked, so what it writes waits for an answer, which is given from now on.
		if err := former.close(); err != nil {
			w.o.Log.Warn("closing a data blob that the keeper has, too", "instance", e.layer.Name, "cause", err)
		}
		last := former.report()
		w.mu.Lock()
		w.past.add(last)
		w.mu.Unlock()
	}
	return nil
}

// openHeld opens what a keeper has held, and returns its directory. A late keeper's instances may leave the store meanwhile.
func (w *Watcher) openHeld(h keeper.Held) (*watched, string, error) {
	for {
		dir, err := directoryOf(h.Data)
		if err != nil {
			return nil, "", err
		}
		layer, err := w.o.Describe(dir)
		var e *watched
		if err == nil {
			e, err = w.open(layer, h.Data)
		}
		if err == nil {
			return e, dir, nil
		}
		if now, lookErr := directoryOf(h.Data); lookErr != nil || now == dir {
			return nil, "", err
		}
	}
}

// put makes e, whose files were in dir, known, and returns what was known of the same files. The instance may have left the store since, and Left
// has not found it.
func (w *Watcher) put(e *watched, dir string) (former *watched) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now, err := directoryOf(e.data); err == nil {
		dir = now
	}
	for _, other := range w.allLocked() {
		if os.SameFile(other.file, e.file) {
			former = other
			w.remove(other)
		}
	}
	if filepath.Base(dir) != e.layer.Name {
		e.orphaned(dir)
		w.orphans[e] = struct{}{}
		return former
	}
	if other := w.current[e.layer.Name]; other != nil { // its files were replaced by these
		w.leave(other, other.path())
	}
	w.current[e.layer.Name] = e
	return former
}

// directoryOf is the directory in which an open file lies now.
func directoryOf(f *os.File) (string, error) {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return "", err
	}
	if _, err := os.Lstat(path); err != nil {
		return "", fmt.Errorf("its data blob was deleted: %w", err)
	}
	return filepath.Dir(path), nil
}

// stuck is what the keeper holds and cannot be served. Nobody may open its data blob: it is watched.
type stuck struct {
	dir   string // where its files were
	data  os.FileInfo
	cause error
}

func (w *Watcher) noteStuck(h keeper.Held, cause error) {
	data, err := h.Data.Stat()
	path, linkErr := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", h.Data.Fd()))
	if err != nil || linkErr != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stuck = append(w.stuck, stuck{filepath.Dir(path), data, cause})
}

// stuckIn is why the instance in a directory cannot be served though the keeper holds it; nil if it does not. It is called with mu held.
func (w *Watcher) stuckIn(dir string) error {
	there, err := os.Stat(filepath.Join(dir, blob.DataName))
	if err != nil {
		return nil
	}
	for _, s := range w.stuck {
		if os.SameFile(s.data, there) {
			return s.cause
		}
	}
	return nil
}

// refuse answers with errors what cannot be served, and owns its descriptors.
func (w *Watcher) refuse(h keeper.Held, g *fanotify.Group) {
	w.spawn(func() {
		if _, err := g.Deny(w.ctx); err != nil && w.ctx.Err() == nil {
			w.o.Log.Error("requests are not refused any more: their readers wait", "held", h.Name, "cause", err)
		}
		if err := errors.Join(g.Close(), h.Data.Close()); err != nil {
			w.o.Log.Warn("closing what could not be served", "held", h.Name, "cause", err)
		}
	})
}

// reconnect finds the keeper again and gives it everything.
func (w *Watcher) reconnect(ctx context.Context) error {
	w.mu.Lock()
	connected := w.connected
	w.mu.Unlock()
	if !connected { // it may hold what an earlier process has left
		return w.Connect(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	client, _, err := keeper.Redial(ctx, w.o.Keeper)
	if err != nil && !errors.Is(err, keeper.ErrSuperseded) && w.mayStart() {
		if err = w.o.Start(ctx); err == nil {
			client, _, err = keeper.Redial(ctx, w.o.Keeper)
		}
	}
	if err != nil {
		return err
	}
	for _, e := range w.all() {
		if err := e.hold(ctx, client); err != nil {
			return errors.Join(err, client.Close())
		}
	}
	if c := w.theCache(); c != nil {
		if err := c.hold(ctx, client); err != nil {
			return errors.Join(err, client.Close())
		}
	}
	w.setKeeper(client)
	w.dropLeft() // what became complete meanwhile
	if w.o.Connected != nil {
		w.o.Connected()
	}
	w.o.Log.Info("keeper connected", "address", w.o.Keeper)
	return nil
}

func (w *Watcher) setKeeper(client *keeper.Client) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keeper, w.since = client, time.Now()
	if client != nil {
		w.connected, w.unsure = true, nil
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

// Ready returns an error while nothing can be watched.
func (w *Watcher) Ready() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.keeper == nil {
		return w.noKeeper()
	}
	if err := w.cacheReady(); err != nil || !w.overCache.Load() {
		return err
	}
	return w.keeper.CanHoldDevice()
}

// noKeeper is what is said while none is connected. It is called with mu held.
func (w *Watcher) noKeeper() error {
	if w.unsure != nil {
		return w.unsure
	}
	return fmt.Errorf("no keeper answers on %s\n  start the unit erofs-snapshotter-keeper", w.o.Keeper)
}

// keeperWait is how long a mount waits for a keeper that has gone: it restarts within a second.
const keeperWait = 5 * time.Second

func (w *Watcher) waitKeeper(ctx context.Context) (*keeper.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, keeperWait)
	defer cancel()
	for {
		w.mu.Lock()
		client, changed, err := w.keeper, w.changed, w.noKeeper()
		w.mu.Unlock()
		if client != nil {
			return client, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// drop has the keeper close what it holds under a name, now or when it is connected again.
func (w *Watcher) drop(name string) {
	w.mu.Lock()
	w.dropped[name] = struct{}{}
	w.mu.Unlock()
	w.dropLeft()
}

// dropLeft has the keeper close what it holds and nobody needs any more. What it cannot be told now is left for the next call: it may be a keeper
// that is just being connected again.
func (w *Watcher) dropLeft() {
	w.mu.Lock()
	client, names := w.keeper, slices.Collect(maps.Keys(w.dropped))
	w.mu.Unlock()
	if client == nil {
		return
	}
	// Nobody watches any more, whether this process ends or not.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), keeperTimeout)
	defer cancel()
	for _, name := range names {
		if err := client.Drop(ctx, name); err != nil {
			w.o.Log.Warn("the keeper holds something that nobody needs any more; it is told again", "held", name, "cause", err)
			return
		}
		w.mu.Lock()
		delete(w.dropped, name)
		w.mu.Unlock()
	}
}
