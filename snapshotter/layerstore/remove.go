package layerstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

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
	if _, ok := s.instances[id]; !ok {
		return nil
	}
	if s.pins[id] > 0 {
		return fmt.Errorf("discard layer instance %s: in use: %w", id, errdefs.ErrFailedPrecondition)
	}
	s.discarded++
	to := filepath.Join(s.dir, fmt.Sprintf("%s%s-%d", removingPrefix, id, s.discarded))
	if err := os.Rename(s.path(id), to); err != nil {
		return fmt.Errorf("discard layer instance %s: %w", id, err)
	}
	delete(s.instances, id)
	delete(s.dirUsage, id)
	return nil
}

// DeleteDiscarded deletes the files of discarded instances. What cannot be deleted is left for the next call.
func (s *Store) DeleteDiscarded() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), removingPrefix) {
			errs = append(errs, os.RemoveAll(filepath.Join(s.dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
