package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
)

// bootID is the id that the kernel gave to this boot.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	id := strings.TrimSpace(string(b))
	if id == "" {
		return "", errors.New("the kernel gives no boot id")
	}
	return id, nil
}

// errOtherBoot says that an instance was not known to be on stable storage when the machine went down.
var errOtherBoot = errors.New("it was not synced before the machine went down")

// checkSynced refuses an instance that is not synced and was made in another boot.
func (s *Store) checkSynced(inst Instance) error {
	if inst.Unsynced != "" && inst.Unsynced != s.boot {
		return errOtherBoot
	}
	return nil
}

// Settle syncs what an earlier process of this boot could not any more. It ends early with ctx.
func (s *Store) Settle(ctx context.Context) {
	for _, inst := range s.List() {
		if inst.Unsynced != "" && ctx.Err() == nil {
			s.settle(inst)
		}
	}
}

// settle puts an instance on stable storage. When that fails it stays marked as not synced: this boot can use it, another one will
// not.
func (s *Store) settle(inst Instance) {
	pin, err := s.Pin(inst.ID)
	if err != nil {
		return // discarded already
	}
	defer pin.Release()
	settled, err := s.syncInstance(inst)
	if err != nil {
		s.log.Error("layer instance not synced: should the machine go down, the layer is converted again", "instance", inst.ID, "layer", inst.Layer, "cause", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instances[inst.ID] = settled
}

// syncInstance syncs the files of an instance, then says so in its layer.json.
func (s *Store) syncInstance(inst Instance) (Instance, error) {
	dir := s.path(inst.ID)
	var files [2]*os.File
	for i, name := range []string{metaName, dataName} {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return Instance{}, err
		}
		defer f.Close()
		files[i] = f
	}
	var err error
	if inst.DiskBytes, err = syncFiles(inst, files[0], files[1]); err != nil {
		return Instance{}, err
	}
	step.Reached("layerstore/settle/synced")
	inst.Unsynced = ""
	next := filepath.Join(dir, nextRecordName)
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Instance{}, err
	}
	if err := writeRecord(next, inst, true); err != nil {
		return Instance{}, err
	}
	if err := os.Rename(next, filepath.Join(dir, recordName)); err != nil {
		return Instance{}, fmt.Errorf("replace %s: %w", recordName, err)
	}
	step.Reached("layerstore/settle/recorded")
	return inst, errors.Join(syncDir(dir), syncDir(s.dir))
}
