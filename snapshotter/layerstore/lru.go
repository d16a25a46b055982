package layerstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// An instance's directory changes when the instance is made, and never again: its time of change says when the instance was used last. The
// time is not synced. What a power cut takes of it costs an order of eviction, nothing else.

// LastUsed returns when MarkUsed was called for an instance last, or when it was made; the zero time if that cannot be read. Such times
// are for comparing: see MarkUsed.
func (s *Store) LastUsed(id ID) time.Time {
	fi, err := os.Lstat(s.path(id))
	if err != nil {
		return time.Time{}
	}
	return fi.ModTime()
}

// MarkUsed notes that instances were in use until now; those that are not there are left out. The time noted is later than that of any other
// instance, also when the clock was set back: what was used later is never taken for older. One call at a time.
func (s *Store) MarkUsed(ids []ID) error {
	if len(ids) == 0 {
		return nil
	}
	now := time.Now()
	for _, inst := range s.List() {
		if last := s.LastUsed(inst.ID); !last.Before(now) {
			now = last.Add(time.Microsecond)
		}
	}
	var errs []error
	for _, id := range ids {
		if err := os.Chtimes(s.path(id), time.Time{}, now); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("note the last use of layer instance %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}
