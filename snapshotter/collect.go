package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// collectEvery is how often we look for what became garbage without a call: a pin that was released, an overlay that was
// unmounted. Such a look reads two small directories and the metadata.
const collectEvery = 5 * time.Second

// Cleanup deletes what no snapshot refers to and whose grace is over, and returns when its space is free.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	_, err := s.collect(ctx)
	return errors.Join(err, s.layers.DeleteDiscarded())
}

// garbage is what a collection takes away.
type garbage struct {
	dirs      []string              // names in snapshots/
	instances []layerstore.Instance // without a reference or pin, for at least the grace, and not kept for reuse
	numbers   []layerstore.ID       // instances that have a mount number and need none: kept ones, or a collection was cut short
	keptBytes int64                 // what is kept takes on disk
	next      time.Duration         // until when another collection will find more; at most collectEvery
}

func (g garbage) empty() bool { return len(g.dirs)+len(g.instances)+len(g.numbers) == 0 }

// collect takes garbage out of the metadata, unmounts it and renames it away; deleting the files, which can take seconds, is
// left to others. It returns when to look again. One thing that cannot be collected does not keep the others: errors are
// gathered, and the next collection tries again.
func (s *Snapshotter) collect(ctx context.Context) (next time.Duration, err error) {
	return s.collectKeeping(ctx, s.keep)
}

// collectKeeping is collect with another limit for what is kept for reuse, in bytes.
func (s *Snapshotter) collectKeeping(ctx context.Context, keep int64) (next time.Duration, err error) {
	s.collecting.Lock()
	defer s.collecting.Unlock()
	var g garbage
	if err := s.view(ctx, func(ctx context.Context, r *records) (err error) {
		g, err = s.findGarbage(ctx, r, time.Now(), keep)
		return err
	}); err != nil {
		return collectEvery, fmt.Errorf("collect: %w", err)
	}
	var errs []error
	if !g.empty() {
		errs = append(errs, s.keepUsed(ctx, &g))
	}
	if !g.empty() {
		errs = append(errs, s.disown(ctx, &g))
		step.Reached("collect/disowned")
	}
	errs = append(errs, s.sweepMounts(ctx), s.sweepOrphans())
	s.kept.bytes.Store(g.keptBytes)
	for _, inst := range g.instances {
		if s.keep > 0 && reusable(inst) {
			s.kept.evictions.Add(1)
		}
		s.log.Info("layer instance collected", "instance", inst.ID, "layer", inst.Layer, "bytes", inst.DiskBytes)
	}
	wake(s.wakeDelete)
	if err := errors.Join(errs...); err != nil {
		return collectEvery, fmt.Errorf("collect: %w", err)
	}
	return g.next, nil
}

// findGarbage lists what no snapshot refers to, but for what is kept for reuse, keep bytes at most.
func (s *Snapshotter) findGarbage(ctx context.Context, r *records, now time.Time, keep int64) (garbage, error) {
	over, next := s.pastGrace(r, now)
	g := garbage{next: next}
	kept, err := s.chooseKept(ctx, over, keep)
	if err != nil {
		return garbage{}, err
	}
	asked := map[layerstore.ID]bool{}
	for _, inst := range over {
		if bytes, ok := kept[inst.ID]; ok {
			g.keptBytes += bytes
		} else if s.isAskedFor(inst) {
			asked[inst.ID] = true
			g.next = min(g.next, collectAskedFor)
		} else {
			g.instances = append(g.instances, inst)
		}
	}
	for _, id := range r.mountNumbers() {
		_, isKept := kept[id]
		_, err := s.layers.Get(id)
		if (isKept || asked[id] || err != nil) && !r.referenced(id) {
			g.numbers = append(g.numbers, id)
		}
	}
	g.dirs, err = s.staleSnapshotDirs(ctx)
	return g, err
}

// collectAskedFor is when it is looked again whether an instance is asked for by the kernel.
const collectAskedFor = time.Second

// isAskedFor says whether the kernel asks for the files of an instance by its id, which is so as long as it has a superblock of it over its cache. Such
// an instance loses its mount, and stays in the store until the last container that reads from it has ended.
func (s *Snapshotter) isAskedFor(inst layerstore.Instance) bool {
	if inst.Lazy == nil || s.demand == nil {
		return false
	}
	live, dead, err := s.demand.OverCache(string(inst.ID))
	if err != nil {
		s.log.Warn("cannot find out whether a layer is still read from: it stays", "instance", inst.ID, "cause", err)
	}
	return live || err != nil || dead && s.demand.Unsure() != nil // the keeper may have the cache
}

// pastGrace returns the instances that nobody has used for at least the grace, and when to look again. It remembers since when each is not used.
// What it finds at the first call since the start was not in use just now: its last use stays as it was noted.
func (s *Snapshotter) pastGrace(r *records, now time.Time) (over []layerstore.Instance, next time.Duration) {
	next = collectEvery
	idle := map[layerstore.ID]time.Time{}
	var ended []layerstore.ID // in use until now
	for _, inst := range s.layers.List() {
		if r.referenced(inst.ID) || s.layers.Pinned(inst.ID) {
			continue
		}
		since, known := s.idle[inst.ID]
		if !known {
			since = now
			if s.idle != nil {
				ended = append(ended, inst.ID)
			}
		}
		idle[inst.ID] = since
		if left := since.Add(s.grace).Sub(now); left <= 0 {
			over = append(over, inst)
		} else {
			next = min(next, left)
		}
	}
	s.idle = idle
	if err := s.layers.MarkUsed(ended); err != nil {
		s.log.Warn("layers kept for reuse may be deleted in the wrong order", "cause", err)
	}
	return over, next
}

// staleSnapshotDirs lists the directories in snapshots/ that belong to no active snapshot or view. The names are read first:
// directories are made inside of the transactions that make the snapshots, so one made later does not appear, and one whose
// transaction is under way is checked again by disown.
func (s *Snapshotter) staleSnapshotDirs(ctx context.Context) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.root, "snapshots"))
	if err != nil {
		return nil, err
	}
	kinds, err := snapshotKinds(ctx)
	if err != nil {
		return nil, err
	}
	var stale []string
	for _, e := range entries {
		id, err := parseSnapshotID(e.Name())
		if err != nil {
			continue
		}
		if kind, ok := kinds[id]; !ok || kind == snapshots.KindCommitted {
			stale = append(stale, e.Name())
		}
	}
	return stale, nil
}

// keepUsed takes out of g the directories that a live overlay or bind mount uses: unlike the files of an EROFS mount they must not be
// deleted under it. If the mounts cannot be listed, all directories are kept.
func (s *Snapshotter) keepUsed(ctx context.Context, g *garbage) (err error) {
	defer func() {
		if err != nil {
			g.dirs, g.instances = nil, onlyEROFS(g.instances)
		}
	}()
	var paths []string
	for _, name := range g.dirs {
		paths = append(paths, filepath.Join(s.root, "snapshots", name, "upper"))
	}
	lowers, err := s.directoryMounts(ctx, g.instances)
	if err != nil {
		return err
	}
	for _, path := range lowers {
		paths = append(paths, path...)
	}
	used, err := fsbackend.Users(paths)
	if err != nil {
		return err
	}
	g.dirs = keepIf(g.dirs, func(name string) bool {
		return !used[filepath.Join(s.root, "snapshots", name, "upper")]
	})
	g.instances = keepIf(g.instances, func(inst layerstore.Instance) bool {
		for _, path := range lowers[inst.ID] {
			if used[path] {
				return false
			}
		}
		return true
	})
	return nil
}

// directoryMounts returns the names under which mounts may use directory instances: the directory itself, its mount in m/, and
// the upper directory that it once was, if a snapshot was committed while it was mounted.
func (s *Snapshotter) directoryMounts(ctx context.Context, instances []layerstore.Instance) (map[layerstore.ID][]string, error) {
	paths := map[layerstore.ID][]string{}
	err := s.view(ctx, func(_ context.Context, r *records) error {
		for _, inst := range instances {
			if inst.Kind != layerstore.Directory {
				continue
			}
			paths[inst.ID] = append(paths[inst.ID], s.layers.DirPath(inst.ID))
			if n, ok := r.mountNumber(inst.ID); ok {
				paths[inst.ID] = append(paths[inst.ID], s.mountDir(n))
			}
			if id, err := parseSnapshotID(inst.Origin); err == nil {
				paths[inst.ID] = append(paths[inst.ID], s.upperDir(id))
			}
		}
		return nil
	})
	return paths, err
}

func onlyEROFS(instances []layerstore.Instance) []layerstore.Instance {
	return keepIf(instances, func(inst layerstore.Instance) bool { return inst.Kind == layerstore.EROFS })
}

func keepIf[T any](all []T, keep func(T) bool) []T {
	var kept []T
	for _, one := range all {
		if keep(one) {
			kept = append(kept, one)
		}
	}
	return kept
}

// disown takes garbage out of the metadata and renames it away, after it has checked again, under the write lock, that it
// still is garbage: nobody can get a reference to it after that. What cannot be renamed stays, and leaves g.
func (s *Snapshotter) disown(ctx context.Context, g *garbage) error {
	var errs []error
	// Renames are not undone: a caller that gives up halfway must not keep the metadata from following them.
	err := s.update(context.WithoutCancel(ctx), func(ctx context.Context, r *records) error {
		g.instances = keepIf(g.instances, func(inst layerstore.Instance) bool {
			if r.referenced(inst.ID) {
				return false
			}
			err := s.layers.Discard(inst.ID)
			if err != nil {
				if !errdefs.IsFailedPrecondition(err) { // that is: pinned meanwhile
					errs = append(errs, err)
				}
				return false
			}
			step.Reached("collect/discarded")
			return true
		})
		for _, inst := range g.instances {
			if err := r.forget(inst.ID); err != nil {
				return err
			}
		}
		for _, id := range g.numbers {
			if !r.referenced(id) {
				if err := r.forget(id); err != nil {
					return err
				}
			}
		}
		kinds, err := snapshotKinds(ctx)
		if err != nil {
			return err
		}
		for _, name := range g.dirs {
			id, err := parseSnapshotID(name)
			if err != nil {
				return err
			}
			if kind, ok := kinds[id]; !ok || kind == snapshots.KindCommitted {
				errs = append(errs, s.layers.DiscardDir(filepath.Join(s.root, "snapshots", name)))
			}
		}
		step.Reached("collect/disowning")
		return nil
	})
	return errors.Join(append(errs, err)...)
}

// sweepMounts removes the mounts that belong to no instance. The names are read before the records: a number is in the
// metadata before its directory is made.
func (s *Snapshotter) sweepMounts(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(s.root, "m"))
	if err != nil {
		return err
	}
	var known map[uint64]layerstore.ID
	if err := s.view(ctx, func(_ context.Context, r *records) error {
		known = r.mountNumbers()
		return nil
	}); err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		n, err := strconv.ParseUint(e.Name(), 36, 64)
		if err != nil {
			continue
		}
		if _, ok := known[n]; !ok {
			errs = append(errs, s.unmountLayer(ctx, n))
		}
	}
	return errors.Join(errs...)
}

// unmountLayer removes the mount with number n and its directory. Whoever still uses it keeps it alive.
func (s *Snapshotter) unmountLayer(ctx context.Context, n uint64) error {
	defer s.mounting.lock(n)()
	target := s.mountDir(n)
	if err := s.backend.Unmount(ctx, target); err != nil {
		return err
	}
	step.Reached("collect/unmounted")
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
