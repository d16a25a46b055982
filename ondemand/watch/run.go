package watch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

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
			unsure := w.Unsure() != nil
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
			if unsure && w.Unsure() == nil {
				if err := w.settled(ctx); err != nil {
					return err
				}
			}
		case <-ticker.C:
			w.Sweep()
			w.dropLeft()
			if c := w.theCache(); c != nil {
				c.look()
			}
			if err := w.afterLoss(ctx); err != nil {
				return err
			}
			w.retryCache(ctx)
		}
	}
}

var errSuperseded = errors.New("another daemon has taken over")

// settled tells that it is known now what is answered for.
func (w *Watcher) settled(ctx context.Context) error {
	w.o.Log.Info("it is known again which layers are answered for", "served", len(w.all()))
	if w.o.Settled == nil {
		return nil
	}
	return w.o.Settled(ctx)
}

// Idle says that nothing is served, as far as is known, and nothing remains to be fetched or checked.
func (w *Watcher) Idle() bool { return w.Unsure() == nil && len(w.all()) == 0 }

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
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.stuck, func(s stuck) bool { return s.dir == dir })
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
