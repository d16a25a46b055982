package layerstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// Discard takes an instance out of the store; DeleteDiscarded deletes its files later. A pinned instance is refused with
// errdefs.ErrFailedPrecondition; one that is not there is no error.
//
// It is one rename, so it can be called inside of the transaction that finds that nothing refers to the instance. From then on
// the same id can be imported again, into new files.
func (s *Store) Discard(id ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	inst, ok := s.instances[id]
	if !ok {
		return nil
	}
	if s.pins[id] > 0 {
		return fmt.Errorf("discard layer instance %s: in use: %w", id, errdefs.ErrFailedPrecondition)
	}
	if err := s.takeAway(inst); err != nil {
		return fmt.Errorf("discard layer instance %s: %w", id, err)
	}
	delete(s.instances, id)
	delete(s.dirUsage, id)
	return nil
}

// takeAway renames the directory of an instance away: to removing/, or to orphans/ while its data are not all here.
func (s *Store) takeAway(inst Instance) error {
	to := s.removing
	if inst.Partial() {
		to = s.orphans
	}
	to = filepath.Join(to, string(randomID()[:16]))
	if err := os.Rename(s.path(inst.ID), to); err != nil {
		return err
	}
	if inst.Lazy != nil && s.left != nil {
		s.left(inst, to)
	}
	return nil
}

// Orphans are the directories of lazy instances that were discarded while data were missing. Containers may read from them until their
// superblocks have gone; then DiscardDir takes them away.
func (s *Store) Orphans() ([]string, error) {
	entries, err := os.ReadDir(s.orphans)
	if err != nil {
		return nil, err
	}
	dirs := make([]string, len(entries))
	for i, e := range entries {
		dirs[i] = filepath.Join(s.orphans, e.Name())
	}
	return dirs, nil
}

// DiscardDir takes any directory on the store's filesystem away, for DeleteDiscarded to delete. It is one rename.
//
// The directory it goes to is otherwise empty, and so has room for a name when the disk is full: that is when it is called.
// A longer name beside the old one could need another block.
func (s *Store) DiscardDir(path string) error {
	return os.Rename(path, filepath.Join(s.removing, string(randomID()[:16])))
}

// DeleteDiscarded deletes what was discarded, also before the store was opened. That takes seconds for a large directory. What
// cannot be deleted, such as a file that a container made immutable, is left for the next call.
func (s *Store) DeleteDiscarded() error {
	s.deleting.Lock()
	defer s.deleting.Unlock()
	entries, err := os.ReadDir(s.removing)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(s.removing, e.Name())))
	}
	return errors.Join(errs...)
}
