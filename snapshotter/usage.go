package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// sharedUsage is what a committed snapshot costs whose instance another one pays for: its entry in the metadata.
var sharedUsage = snapshots.Usage{Size: 0, Inodes: 1}

// Usage returns what a snapshot takes on disk, without its parents. An instance that several committed snapshots share is
// charged to the oldest of them alone. A view takes nothing, and layers kept for reuse are charged to nobody.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	u, err := s.usage(ctx, key)
	if errors.Is(err, fs.ErrNotExist) || errdefs.IsNotFound(err) {
		// What was to be measured may have been committed, or converted and collected, since we were told where it is.
		u, err = s.usage(ctx, key)
	}
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("usage of snapshot %q: %w", key, err)
	}
	return u, nil
}

func (s *Snapshotter) usage(ctx context.Context, key string) (snapshots.Usage, error) {
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
	step.Reached("usage/known")
	var u layerstore.Usage
	switch {
	case kind == snapshots.KindActive:
		u, err = layerstore.DirUsage(ctx, s.upperDir(id))
	case kind == snapshots.KindCommitted && pays:
		u, err = s.instanceUsage(ctx, instance)
	case kind == snapshots.KindCommitted:
		return sharedUsage, nil
	}
	return snapshots.Usage{Size: u.Bytes, Inodes: u.Inodes}, err
}

// instanceUsage is what an instance takes on disk, and with it the directory that it was made from, while that is there: snapshots that were
// made before lie on it. To charge those would count a layer of the image as written by a container, which a kubelet ends for that.
func (s *Snapshotter) instanceUsage(ctx context.Context, id layerstore.ID) (layerstore.Usage, error) {
	inst, err := s.layers.Get(id)
	if err != nil {
		return layerstore.Usage{}, err
	}
	u, err := s.layers.Usage(ctx, id)
	if err != nil || inst.Kind != layerstore.EROFS || inst.Origin == "" {
		return u, err
	}
	dir, err := s.layers.Usage(ctx, layerstore.ID(inst.Origin))
	if errdefs.IsNotFound(err) {
		return u, nil
	}
	return layerstore.Usage{Bytes: u.Bytes + dir.Bytes, Inodes: u.Inodes + dir.Inodes}, err
}
