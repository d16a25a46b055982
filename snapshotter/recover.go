package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"strconv"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// recover repairs what a crash or a power cut left. Each part may be cut short and repeated.
func (s *Snapshotter) recover(ctx context.Context) error {
	var active, empty []uint64 // active snapshots, views of nothing
	err := s.update(ctx, func(ctx context.Context, r *records) error {
		kinds, err := snapshotKinds(ctx)
		if err != nil {
			return err
		}
		for id, kind := range kinds {
			if kind == snapshots.KindActive {
				active = append(active, id)
			} else if rec, err := r.get(id); err == nil && kind == snapshots.KindView && len(rec.Lowers) == 0 {
				empty = append(empty, id)
			}
		}
		if err := s.repeatAdoptions(r); err != nil {
			return err
		}
		return s.checkRecords(r, kinds)
	})
	if err != nil {
		return err
	}
	if err := s.returnDirectories(ctx, active); err != nil {
		return err
	}
	for _, id := range active {
		s.restoreDirs(s.upperDir(id), s.workDir(id))
	}
	for _, id := range empty {
		s.restoreDirs(s.upperDir(id))
	}
	if err := s.unmountMissing(ctx); err != nil {
		return err
	}
	if err := s.renewPoisoned(ctx); err != nil {
		return err
	}
	// What is garbage already goes now; instances nobody refers to have their grace. Run deletes the files.
	if _, err := s.collect(ctx); err != nil {
		s.log.Warn("collection at start left something for the next one", "cause", err)
	}
	return nil
}

// repeatAdoptions renames the upper directories of committed snapshots that should have been renamed: Commit syncs the
// metadata alone, so after a power cut that can be newer than the directories.
func (s *Snapshotter) repeatAdoptions(r *records) error {
	all, err := r.all()
	if err != nil {
		return err
	}
	for id, rec := range all {
		if !rec.Adopted {
			continue
		}
		if _, err := s.layers.Get(rec.Instance); err == nil {
			continue
		}
		if _, err := os.Lstat(s.upperDir(id)); err != nil {
			continue // checkRecords names the loss
		}
		_, pin, err := s.layers.AdoptDirAs(rec.Instance, s.upperDir(id), strconv.FormatUint(id, 10))
		if err != nil {
			return err
		}
		pin.Release()
		s.log.Info("upper directory of a committed snapshot, not renamed before a power cut: adopted now", "snapshot", id)
	}
	return nil
}

// checkRecords compares our bucket with containerd's. Both are written in the same transactions, so a difference means that
// something else has written to the file: what can be derived is derived anew, and what is lost is named.
func (s *Snapshotter) checkRecords(r *records, kinds map[uint64]snapshots.Kind) error {
	all, err := r.all()
	if err != nil {
		return err
	}
	want := map[string]byte{}
	for id, rec := range all {
		if _, ok := kinds[id]; !ok {
			s.log.Warn("layers of a snapshot that does not exist: dropped", "snapshot", id)
			if err := r.remove(id); err != nil {
				return err
			}
			continue
		}
		for inst, how := range rec.refs() {
			want[string(refKey(inst, id))] = how
			if err := r.assignNumber(inst); err != nil {
				return err
			}
			if _, err := s.layers.Get(inst); err == nil {
				continue
			}
			if from, ok := r.source(inst); ok {
				s.log.Warn("a layer instance of a snapshot is missing: it is made again when it is needed", "snapshot", id, "instance", inst, "layer", from.Layer.Digest)
			} else {
				s.log.Error("a layer instance of a snapshot is missing: the snapshot cannot be mounted; remove its image and pull it again", "snapshot", id, "instance", inst)
			}
		}
	}
	for id := range kinds {
		if _, ok := all[id]; !ok {
			s.log.Error("the layers of a snapshot are not known: it cannot be mounted; remove its image and pull it again", "snapshot", id)
		}
	}
	have := map[string]byte{}
	for k, v := range bucketItems(r.refs) {
		if len(v) == 1 {
			have[string(k)] = v[0]
		}
	}
	if maps.Equal(want, have) {
		return nil
	}
	s.log.Warn("references between snapshots and layer instances did not match: made anew", "had", len(have), "have", len(want))
	return r.replaceRefs(want)
}

// returnDirectories undoes adoptions whose transaction was not committed: nobody refers to the instance, and the active
// snapshot it came from has no upper directory.
func (s *Snapshotter) returnDirectories(ctx context.Context, active []uint64) error {
	var lost []layerstore.Instance
	err := s.view(ctx, func(_ context.Context, r *records) error {
		for _, inst := range s.layers.List() {
			if inst.Kind == layerstore.Directory && !r.referenced(inst.ID) {
				lost = append(lost, inst)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	origins := map[string]uint64{}
	for _, id := range active {
		origins[fmt.Sprint(id)] = id
	}
	for _, inst := range lost {
		id, ok := origins[inst.Origin]
		if !ok {
			continue // its snapshot was removed meanwhile: garbage
		}
		if _, err := os.Lstat(s.upperDir(id)); err == nil {
			continue
		}
		if err := os.MkdirAll(s.snapshotDir(id), 0o700); err != nil {
			return err
		}
		if err := s.layers.ReturnDir(inst.ID, s.upperDir(id)); err != nil {
			return err
		}
		s.log.Info("upper directory of a commit that was cut short: returned", "snapshot", id)
	}
	return nil
}

// restoreDirs makes the directories of a snapshot that are not there. A crash does not cost them, but a power cut may, soon after
// Prepare: they are not synced. One that cannot be made, on a full disk, is missed by its snapshot alone.
func (s *Snapshotter) restoreDirs(dirs ...string) {
	for _, dir := range dirs {
		_, err := os.Lstat(dir)
		if err == nil {
			continue
		}
		if errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("directory of a snapshot was lost, probably in a power cut: made anew", "path", dir)
			err = os.MkdirAll(dir, 0o755)
		}
		if err != nil {
			s.log.Error("directory of a snapshot not restored: it cannot be mounted", "path", dir, "cause", err)
		}
	}
}

// unmountMissing removes the mounts of instances that the layer store does not have any more because they were damaged: when
// such a layer is imported again, its mount must be of the new files.
func (s *Snapshotter) unmountMissing(ctx context.Context) error {
	var known map[uint64]layerstore.ID
	if err := s.view(ctx, func(_ context.Context, r *records) error {
		known = r.mountNumbers()
		return nil
	}); err != nil {
		return err
	}
	for n, id := range known {
		if _, err := s.layers.Get(id); err == nil {
			continue
		}
		if err := s.unmountLayer(ctx, n); err != nil {
			return err
		}
	}
	return nil
}
