package layerstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
)

// errUnsynced says that an instance was not known to be on stable storage when its process ended. What a file holds then only the
// page cache knows, and the kernel tells of a failed write once: a later sync that succeeds proves nothing.
var errUnsynced = errors.New("it was not synced before the daemon or the machine went down")

// settle puts an instance that is in use already on stable storage, and closes its files. If the disk does not take it, what the kernel
// still holds may go at any time: the instance is damaged and leaves the store. If only that it is synced cannot be written down, it
// stays, and is dropped at the next start.
func (s *Store) settle(inst Instance, files *imageFiles) {
	defer files.close()
	pin, err := s.Pin(inst.ID)
	if err != nil {
		return // discarded already
	}
	defer pin.Release()
	if inst.DiskBytes, err = files.sync(inst); err != nil {
		s.log.Error("layer instance could not be written to the disk: it is made again when it is needed; restart the containers that use it",
			"instance", inst.ID, "layer", inst.Layer, "cause", err)
		s.lose(inst.ID)
		return
	}
	step.Reached("layerstore/settle/synced")
	inst.Unsynced = false
	if err := s.replaceRecord(inst); err != nil {
		s.log.Warn("layer instance is synced, which cannot be recorded: it will be converted again after a restart", "instance", inst.ID, "layer", inst.Layer, "cause", err)
		return
	}
	step.Reached("layerstore/settle/recorded")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instances[inst.ID] = inst
}

// replaceRecord puts another layer.json in the place of the first.
func (s *Store) replaceRecord(inst Instance) error {
	dir := s.path(inst.ID)
	next := filepath.Join(dir, nextRecordName)
	if err := writeRecord(next, inst, true); err != nil {
		return err
	}
	if err := os.Rename(next, filepath.Join(dir, recordName)); err != nil {
		return fmt.Errorf("replace %s: %w", recordName, err)
	}
	return errors.Join(syncDir(dir), syncDir(s.dir))
}

// Lose takes a lazy instance that turned out damaged out of the store. Its snapshots have it made again.
func (s *Store) Lose(id ID) { s.lose(id) }

// lose takes a damaged instance out of the store, whatever its pins, and tells.
func (s *Store) lose(id ID) {
	s.mu.Lock()
	delete(s.instances, id)
	err := s.DiscardDir(s.path(id))
	s.mu.Unlock()
	if err != nil {
		s.log.Error("damaged layer instance not removed", "instance", id, "cause", err)
	}
	if s.lost != nil {
		s.lost(id)
	}
}
