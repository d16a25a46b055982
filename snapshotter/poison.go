package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// When both the daemon and the keeper have gone, the kernel reads missing data as zeros, and keeps those in memory. What is mounted then is
// poisoned, for ever: nothing repairs a page that a process has mapped. So the instance gets new files, with the data that are certain, and
// new mounts show those. The old data blob is cut to nothing, so that those who still read from it get errors instead of zeros; what the old
// mount had in memory is dropped as far as no process has it mapped. The containers must be restarted, which is said until they are.

// Poisoned is an old mount of an instance that containers still use.
type Poisoned struct {
	Instance layerstore.Instance
	// Users are the names of the snapshots of those containers when it was found out. They are kept until the mount has gone.
	Users []string
}

// poisoned are they, by directory of the old files.
type poisoned struct {
	// undecided says that it is not known which mounts are: a keeper is there that does not answer. What it holds is not poisoned, its readers
	// merely wait; and to cut a file that is watched would wait, too.
	undecided atomic.Bool

	mu  sync.Mutex
	all map[string]Poisoned
	// dead are the instances with a mount over a cache that has gone: see dead.go.
	dead map[layerstore.ID]Poisoned
}

// Poisoned returns the mounts that may show wrong data.
func (s *Snapshotter) Poisoned() []Poisoned {
	s.poison.mu.Lock()
	defer s.poison.mu.Unlock()
	return append(slices.Collect(maps.Values(s.poison.all)), slices.Collect(maps.Values(s.poison.dead))...)
}

// renewPoisoned looks for mounts of partial instances, and of orphans, for which nobody has answered. It runs at start, when everything that is
// answered for has been taken over from the keeper. While it is not known what the keeper has, it is left to RenewPoisoned.
func (s *Snapshotter) renewPoisoned(ctx context.Context) error {
	if s.demand == nil {
		return nil
	}
	if err := s.demand.Unsure(); err != nil {
		s.poison.undecided.Store(true)
		s.log.Error("layers whose data are not all here are left as they are, and not mounted, until the keeper answers", "layers", s.countPartial(), "cause", err)
		return nil
	}
	for _, listed := range s.layers.List() {
		if !listed.Partial() || s.demand.Watches(string(listed.ID)) {
			continue
		}
		// Asked again, now that nobody watches: one that became complete since is not partial any more before its watch ends.
		inst, err := s.layers.Get(listed.ID)
		if err != nil || !inst.Partial() {
			continue
		}
		alive, err := s.demand.Alive(s.layers.Dir(inst.ID))
		if err != nil {
			return err
		}
		if alive {
			if err := s.renew(ctx, inst); err != nil {
				return err
			}
		}
	}
	dirs, err := s.layers.Orphans()
	if err != nil {
		return err
	}
	errs := []error{s.dropDead(ctx)}
	for _, dir := range dirs {
		if !s.demand.Serves(dir) && !s.knownPoisoned(dir) {
			errs = append(errs, s.poisonOrphan(dir))
		}
	}
	return errors.Join(errs...)
}

// RenewPoisoned does what New has left undone because it was not known for which layers somebody answers. It does nothing if nothing was left.
func (s *Snapshotter) RenewPoisoned(ctx context.Context) error {
	if !s.poison.undecided.Load() || s.demand.Unsure() != nil {
		return nil
	}
	s.collecting.Lock() // nothing leaves the store meanwhile
	defer s.collecting.Unlock()
	if err := s.renewPoisoned(ctx); err != nil {
		return fmt.Errorf("renew layers that nobody has answered for: %w", err)
	}
	s.poison.undecided.Store(false)
	return nil
}

// checkDecided returns an error for a partial instance whose mount may be poisoned.
func (s *Snapshotter) checkDecided(id layerstore.ID) error {
	if !s.poison.undecided.Load() {
		return nil
	}
	inst, err := s.layers.Get(id)
	if err != nil || !inst.Partial() {
		return nil
	}
	if err := s.demand.Unsure(); err != nil {
		return err
	}
	return errors.New("it is just being found out whether somebody answers for its missing data")
}

func (s *Snapshotter) countPartial() (n int) {
	for _, inst := range s.layers.List() {
		if inst.Partial() {
			n++
		}
	}
	return n
}

// renew gives an instance new files and poisons the old ones.
func (s *Snapshotter) renew(ctx context.Context, inst layerstore.Instance) error {
	users, n, mounted, err := s.usersOf(ctx, inst.ID)
	if err != nil {
		return err
	}
	s.keepUsers(s.layers.Dir(inst.ID), users) // goes with the old files, whatever happens then
	orphan, err := s.layers.Renew(ctx, inst.ID)
	if err != nil {
		return err
	}
	var errs []error
	errs = append(errs, os.Truncate(filepath.Join(orphan, filepath.Base(s.layers.DataPath(inst.ID))), 0))
	if mounted {
		dropCached(s.mountDir(n))
		errs = append(errs, s.unmountLayer(ctx, n))
	}
	s.notePoisoned(orphan, Poisoned{inst, users}, true)
	return errors.Join(errs...)
}

// usersOf returns the names of the active snapshots and views that have an instance below them, and where it is mounted.
func (s *Snapshotter) usersOf(ctx context.Context, id layerstore.ID) (users []string, n uint64, mounted bool, err error) {
	err = s.view(ctx, func(ctx context.Context, r *records) error {
		n, mounted = r.mountNumber(id)
		return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			key, _, _, err := storage.GetInfo(ctx, info.Name)
			if err != nil {
				return err
			}
			number, err := parseSnapshotID(key)
			if err != nil {
				return err
			}
			if rec, err := r.get(number); err == nil && slices.Contains(rec.Lowers, id) {
				users = append(users, info.Name)
			}
			return nil
		})
	})
	if err := ignoreNoSnapshots(err); err != nil {
		return nil, 0, false, err
	}
	if mounted {
		mounted, err = fsbackend.Mounted(s.mountDir(n))
	}
	return users, n, mounted, err
}

// poisonOrphan cuts the data of an orphan that was not answered for, or deletes it if nobody reads from it, or nobody had to answer.
func (s *Snapshotter) poisonOrphan(dir string) error {
	alive, err := s.demand.Alive(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !alive {
		return s.discardOrphan(dir)
	}
	inst, err := layerstore.ReadInstance(dir)
	if err != nil {
		s.log.Warn("what a removed layer was is not known", "path", dir, "cause", err)
	} else if layerstore.HasAll(dir, inst.ID) { // they have come before its watch ended, and whoever filled it has ended then, or is about to call Gone
		return s.discardOrphan(dir)
	}
	users, known, err := layerstore.Users(dir)
	if err != nil {
		s.log.Warn("who uses a removed layer is not known any more", "path", dir, "cause", err)
	}
	if !known {
		s.keepUsers(dir, nil)
	}
	s.notePoisoned(dir, Poisoned{inst, users}, !known)
	return os.Truncate(filepath.Join(dir, filepath.Base(s.layers.DataPath(inst.ID))), 0)
}

// discardOrphan takes the files of an orphan away, unless Gone has done so meanwhile.
func (s *Snapshotter) discardOrphan(dir string) error {
	if err := s.layers.DiscardDir(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// keepUsers has the next process know who uses the files in a directory, and that it was said.
func (s *Snapshotter) keepUsers(dir string, users []string) {
	if err := layerstore.NoteUsers(dir, users); err != nil {
		s.log.Warn("who uses a lazy layer that nobody has answered for is not kept", "path", dir, "cause", err)
	}
}

// notePoisoned says who must be restarted: what no process has found before, and the rest once for each start of a daemon.
func (s *Snapshotter) notePoisoned(dir string, p Poisoned, found bool) {
	if found || !s.brief {
		s.log.Error("while neither the daemon nor the keeper was there, containers may have read zeros instead of data of this layer: restart them",
			"instance", p.Instance.ID, "layer", p.Instance.Layer, "snapshots", p.Users)
	}
	s.poison.mu.Lock()
	defer s.poison.mu.Unlock()
	if s.poison.all == nil {
		s.poison.all = map[string]Poisoned{}
	}
	s.poison.all[dir] = p
}

func (s *Snapshotter) knownPoisoned(dir string) bool {
	s.poison.mu.Lock()
	defer s.poison.mu.Unlock()
	_, known := s.poison.all[dir]
	return known
}

// sweepOrphans deletes the poisoned files that nobody reads from any more. Those that are answered for go when Gone says so.
func (s *Snapshotter) sweepOrphans() error {
	s.poison.mu.Lock()
	dirs := slices.Collect(maps.Keys(s.poison.all))
	s.poison.mu.Unlock()
	errs := []error{s.sweepDead()}
	for _, dir := range dirs {
		alive, err := s.demand.Alive(dir)
		if err != nil || alive {
			errs = append(errs, err)
			continue
		}
		s.poison.mu.Lock()
		delete(s.poison.all, dir)
		s.poison.mu.Unlock()
		errs = append(errs, s.layers.DiscardDir(dir))
	}
	return errors.Join(errs...)
}

// Gone deletes the files of an orphan that nobody reads from any more.
func (s *Snapshotter) Gone(dir string) {
	if err := s.layers.DiscardDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("files of a removed layer not deleted", "path", dir, "cause", err)
	}
	wake(s.wakeDelete)
}

// dropCached drops what the page cache has of the files below a mount. Pages that a process has mapped stay.
func dropCached(root string) {
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return nil
		}
		defer f.Close()
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		return nil
	})
}
