package snapshotter

import (
	"context"

	"github.com/containerd/containerd/v2/core/snapshots/storage"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
)

// Remove deletes a snapshot from the metadata. What it had on disk is left to collection.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	err := s.update(ctx, func(ctx context.Context, r *records) error {
		removed, _, err := storage.Remove(ctx, key)
		if err != nil {
			return err
		}
		id, err := parseSnapshotID(removed)
		if err != nil {
			return err
		}
		return r.remove(id)
	})
	if err != nil {
		return err
	}
	step.Reached("remove/done")
	wake(s.wakeCollect)
	return nil
}
