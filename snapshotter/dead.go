package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// A mount over the kernel's cache of files dies when the daemon and the keeper have both gone, or the kernel has given the cache up: nothing wrong is
// ever read from it, but reads fail, for ever. The instance is as it was; it only has to be mounted again, over another cache, for those who start from now on. Containers that
// use the old mount must be restarted, which is said until they are.

// CacheLost does what New does about dead mounts, when a cache is lost while this process uses it.
func (s *Snapshotter) CacheLost(ctx context.Context) error {
	s.collecting.Lock() // nothing leaves the store meanwhile
	defer s.collecting.Unlock()
	return s.dropDead(ctx)
}

// dropDead takes away the mounts over caches that have gone, and finds out who uses them.
func (s *Snapshotter) dropDead(ctx context.Context) error {
	if s.stale == nil {
		return nil
	}
	points, err := s.stale(filepath.Join(s.root, "m"))
	if err != nil {
		return fmt.Errorf("look for mounts over a cache that has gone: %w", err)
	}
	var errs []error
	for _, point := range points {
		if n, err := strconv.ParseUint(filepath.Base(point), 36, 64); err == nil {
			errs = append(errs, s.dropDeadMount(ctx, n))
		}
	}
	for _, inst := range s.layers.List() {
		errs = append(errs, s.noteDead(inst))
	}
	return errors.Join(errs...)
}

func (s *Snapshotter) dropDeadMount(ctx context.Context, n uint64) error {
	var id layerstore.ID
	if err := s.view(ctx, func(_ context.Context, r *records) error {
		id = r.mountNumbers()[n]
		return nil
	}); err != nil {
		return err
	}
	if _, err := s.layers.Get(id); err == nil {
		users, _, _, err := s.usersOf(ctx, id)
		if err != nil {
			return err
		}
		s.keepUsers(s.layers.Dir(id), users)
	}
	return s.unmountLayer(ctx, n)
}

// noteDead says who must be restarted, if the instance has a dead mount that is in use. If it has none, nobody has to be.
func (s *Snapshotter) noteDead(inst layerstore.Instance) error {
	if inst.Lazy == nil {
		return nil
	}
	_, dead, err := s.demand.OverCache(string(inst.ID))
	if err == nil && !dead {
		return layerstore.ForgetUsers(s.layers.Dir(inst.ID))
	}
	if err != nil {
		return err
	}
	users, _, err := layerstore.Users(s.layers.Dir(inst.ID))
	if err != nil {
		s.log.Warn("who uses a dead mount is not known any more", "instance", inst.ID, "cause", err)
	}
	s.log.Error("the kernel's cache was lost, so reads of this layer fail in containers that were running: restart them",
		"instance", inst.ID, "layer", inst.Layer, "snapshots", users)
	s.poison.mu.Lock()
	defer s.poison.mu.Unlock()
	if s.poison.dead == nil {
		s.poison.dead = map[layerstore.ID]Poisoned{}
	}
	s.poison.dead[inst.ID] = Poisoned{inst, users}
	return nil
}

// sweepDead forgets the dead mounts that nobody uses any more.
func (s *Snapshotter) sweepDead() error {
	s.poison.mu.Lock()
	defer s.poison.mu.Unlock()
	var errs []error
	for id := range s.poison.dead {
		_, dead, err := s.demand.OverCache(string(id))
		if err == nil && !dead {
			delete(s.poison.dead, id)
			err = layerstore.ForgetUsers(s.layers.Dir(id))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
