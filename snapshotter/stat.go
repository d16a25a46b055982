package snapshotter

import (
	"context"
	"fmt"
	"strconv"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// Stat returns what is known about a snapshot.
func (s *Snapshotter) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = s.view(ctx, func(ctx context.Context, _ *records) error {
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	return info, err
}

// Update changes labels.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (updated snapshots.Info, err error) {
	err = s.update(ctx, func(ctx context.Context, _ *records) error {
		updated, err = storage.UpdateInfo(ctx, info, fieldpaths...)
		return err
	})
	return updated, err
}

// Walk calls fn for every snapshot that the filters match. fn may call the Snapshotter.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	var all []snapshots.Info
	err := s.view(ctx, func(ctx context.Context, _ *records) error {
		return ignoreNoSnapshots(storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			all = append(all, info)
			return nil
		}, filters...))
	})
	if err != nil {
		return err
	}
	for _, info := range all {
		if err := fn(ctx, info); err != nil {
			return err
		}
	}
	return nil
}

// ignoreNoSnapshots turns the error that storage gives before the first snapshot was made into "there is none".
func ignoreNoSnapshots(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// snapshotKind returns the number and kind of the snapshot called key.
func snapshotKind(ctx context.Context, key string) (uint64, snapshots.Kind, error) {
	id, info, _, err := storage.GetInfo(ctx, key)
	if err != nil {
		return 0, 0, err
	}
	n, err := parseSnapshotID(id)
	return n, info.Kind, err
}

// snapshotKinds returns the numbers and kinds of all snapshots.
func snapshotKinds(ctx context.Context) (map[uint64]snapshots.Kind, error) {
	kinds := map[uint64]snapshots.Kind{}
	keys, err := storage.IDMap(ctx)
	if err := ignoreNoSnapshots(err); err != nil {
		return nil, err
	}
	for _, key := range keys {
		n, kind, err := snapshotKind(ctx, key)
		if err != nil {
			return nil, err
		}
		kinds[n] = kind
	}
	return kinds, nil
}

func parseSnapshotID(id string) (uint64, error) {
	n, err := strconv.ParseUint(id, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("snapshot id %q: %w", id, err)
	}
	return n, nil
}
