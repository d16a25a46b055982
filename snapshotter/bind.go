package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// ActiveSnapshot returns the id of the active snapshot that mounts write to, if they are mounts that Prepare returned.
func (s *Snapshotter) ActiveSnapshot(ctx context.Context, mounts []mount.Mount) (id string, ok bool) {
	if len(mounts) != 1 {
		return "", false
	}
	upper := mounts[0].Source
	if mounts[0].Type == "overlay" {
		upper = ""
		for _, o := range mounts[0].Options {
			if dir, found := strings.CutPrefix(o, "upperdir="); found {
				upper = dir
			}
		}
	}
	rel, err := filepath.Rel(filepath.Join(s.root, "snapshots"), upper)
	if err != nil {
		return "", false
	}
	id, file := filepath.Split(rel)
	id = strings.TrimSuffix(id, "/")
	n, err := parseSnapshotID(id)
	if err != nil || file != "upper" || strconv.FormatUint(n, 10) != id {
		return "", false
	}
	err = s.view(ctx, func(ctx context.Context, _ *records) error { return mustBeActive(ctx, id) })
	return id, err == nil
}

// Bind says that the content of an active snapshot is this instance, which Commit will take then. Until the call returns the
// caller must have it pinned. Binding the same instance again does nothing; another one is errdefs.ErrFailedPrecondition.
//
// The layer is what the instance was made from, in the namespace of ctx. Should the instance be lost, it is made from that again.
func (s *Snapshotter) Bind(ctx context.Context, snapshotID string, instance layerstore.ID, layer ocispec.Descriptor) error {
	from, err := sourceOf(ctx, layer, "", "")
	if err != nil {
		return err
	}
	err = s.update(ctx, func(ctx context.Context, r *records) error {
		if err := mustBeActive(ctx, snapshotID); err != nil {
			return err
		}
		if _, err := s.layers.Get(instance); err != nil {
			return err
		}
		id, err := parseSnapshotID(snapshotID)
		if err != nil {
			return err
		}
		rec, err := r.get(id)
		if err != nil {
			return err
		}
		if rec.Bound != "" && rec.Bound != instance {
			return fmt.Errorf("it has the layer %s already: %w", rec.Bound, errdefs.ErrFailedPrecondition)
		}
		rec.Bound = instance
		return errors.Join(r.put(id, rec), r.putSource(instance, from))
	})
	if err != nil {
		return fmt.Errorf("give layer instance %s to snapshot %s: %w", instance, snapshotID, err)
	}
	return nil
}

// mustBeActive returns an error unless there is an active snapshot with this id.
func mustBeActive(ctx context.Context, id string) error {
	keys, err := storage.IDMap(ctx)
	if err := ignoreNoSnapshots(err); err != nil {
		return err
	}
	key, ok := keys[id]
	if !ok {
		return fmt.Errorf("snapshot %s: %w", id, errdefs.ErrNotFound)
	}
	_, kind, err := snapshotKind(ctx, key)
	if err != nil {
		return err
	}
	if kind != snapshots.KindActive {
		return fmt.Errorf("snapshot %s is a %s: %w", id, kind, errdefs.ErrFailedPrecondition)
	}
	return nil
}
