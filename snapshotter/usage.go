package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// sharedUsage is what a committed snapshot costs whose instance another one pays for: its entry in the metadata.
var sharedUsage = snapshots.Usage{Size: 0, Inodes: 1}

// Usage returns what a snapshot takes on disk, without its parents. An instance that several committed snapshots share is
// charged to the oldest of them alone. A view takes nothing.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	var (
		id       uint64
		kind     snapshots.Kind
		instance layerstore.ID
		pays     bool
	)
	err := s.view(ctx, func(ctx context.Context, r *records) (err error) {
		if id, kind, err = snapshotKind(ctx, key); err != nil || kind != snapshots.KindCommitted {
			return err
		}
		rec, err := r.get(id)
		if err != nil {
			return err
		}
		instance = rec.Instance
		sharers := r.committed(instance)
		pays = len(sharers) > 0 && sharers[0] == id
		return nil
	})
	if err != nil {
		return snapshots.Usage{}, err
	}
	var u layerstore.Usage
	switch {
	case kind == snapshots.KindActive:
		u, err = layerstore.DirUsage(ctx, s.upperDir(id))
	case kind == snapshots.KindCommitted && pays:
		u, err = s.layers.Usage(ctx, instance)
	case kind == snapshots.KindCommitted:
		return sharedUsage, nil
	}
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("usage of snapshot %q: %w", key, err)
	}
	return snapshots.Usage{Size: u.Bytes, Inodes: u.Inodes}, nil
}
