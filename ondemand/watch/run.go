package watch

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/fanotify"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// Intervals of Run.
const (
	lookForOrphans = time.Second
	redialKeeper   = 250 * time.Millisecond
	keeperTimeout  = 10 * time.Second // for one call to the keeper
)

// Run looks after the keeper, and after orphans, until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	ticker := time.NewTicker(lookForOrphans)
	defer ticker.Stop()
	var said string
	for {
		w.mu.Lock()
		client := w.keeper
		w.mu.Unlock()
		var lost <-chan struct{}
		var redial <-chan time.Time
		if client != nil {
			lost = client.Done()
		} else {
			redial = time.After(redialKeeper)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-lost:
			if errors.Is(client.Err(), keeper.ErrSuperseded) {
				return errSuperseded
			}
			w.o.Log.Warn("the keeper has gone; until it is back a crash of this process would show wrong data to containers", "cause", client.Err())
			w.setKeeper(nil)
		case <-redial:
			err := w.reconnect(ctx)
			if errors.Is(err, keeper.ErrSuperseded) {
				return errSuperseded
			}
			if err != nil && err.Error() != said && ctx.Err() == nil {
				said = err.Error()
				w.o.Log.Warn("no keeper; layers are pulled as a whole", "cause", err)
			} else if err == nil {
				said = ""
			}
		case <-ticker.C:
			w.Sweep()
			w.dropLeft()
		}
	}
}

var errSuperseded = errors.New("another daemon has taken over")

// reconnect finds the keeper again and gives it everything.
func (w *Watcher) reconnect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	w.mu.Lock()
	connected := w.connected
	w.mu.Unlock()
	if !connected { // it may hold what an earlier process has left
		return w.Connect(ctx)
	}
	client, _, err := keeper.Redial(ctx, w.o.Keeper)
	if err != nil && !errors.Is(err, keeper.ErrSuperseded) && w.o.Start != nil {
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
	w.setKeeper(client)
	w.dropLeft() // what became complete meanwhile
	if w.o.Connected != nil {
		w.o.Connected()
	}
	w.o.Log.Info("keeper connected", "address", w.o.Keeper)
	return nil
}

// Idle says that nothing is served, and nothing remains to be fetched or checked.
func (w *Watcher) Idle() bool { return len(w.all()) == 0 }

// Sweep closes the orphans that nobody reads from any more. Run does so again and again.
func (w *Watcher) Sweep() {
	for _, e := range w.all() {
		if e.orphan.Load() == nil {
			continue
		}
		alive, err := e.alive()
		if alive || errors.Is(err, os.ErrClosed) {
			continue
		}
		if err != nil {
			w.o.Log.Warn("cannot find out whether a removed layer is still read from: it stays", "instance", e.layer.Name, "cause", err)
			continue
		}
		dir := e.orphanDir()
		if err := e.abandon(); err != nil {
			w.o.Log.Warn("closing a removed layer", "instance", e.layer.Name, "cause", err)
		}
		w.forget(e)
		if dir != "" {
			w.o.Gone(dir)
		}
		w.o.Log.Info("removed layer is not read from any more", "instance", e.layer.Name)
	}
}

// Alive is the function Alive, but for the files that this process has open itself.
func (w *Watcher) Alive(dir string) (bool, error) {
	for _, e := range w.all() {
		if e.isIn(dir) {
			return e.alive()
		}
	}
	return Alive(dir)
}

// Serves says whether reads are answered of the data of an orphan in dir.
func (w *Watcher) Serves(dir string) bool {
	for _, e := range w.all() {
		if at := e.orphan.Load(); at != nil && *at == dir {
			return true
		}
	}
	return false
}

// Alive says whether a superblock has the meta image in dir open: mounted, or unmounted and still in use. A write lease is given only if nobody
// else has the file open (fcntl(2), F_SETLEASE). Whoever reads the file in another way counts as well.
func Alive(dir string) (bool, error) {
	f, err := os.Open(filepath.Join(dir, metaName))
	if err != nil {
		return false, err
	}
	defer f.Close()
	return openElsewhere(f)
}

// openElsewhere says whether anybody has a file open by another open file than f.
func openElsewhere(f *os.File) (elsewhere bool, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	var leaseErr error
	err = raw.Control(func(fd uintptr) {
		if _, leaseErr = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_WRLCK); leaseErr == nil {
			_, leaseErr = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_UNLCK) // whoever opens it now has waited
		}
	})
	if err == nil {
		err = leaseErr
	}
	if errors.Is(err, unix.EAGAIN) {
		return true, nil
	}
	return false, err
}

// spawn runs do, which Close waits for.
func (w *Watcher) spawn(do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.work.Go(do)
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
