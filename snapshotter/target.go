package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/remote"
)

// prepareTarget answers a Prepare for a layer that containerd announces before it fetches it. errdefs.ErrAlreadyExists says that there is a
// committed snapshot of the layer now; nil that Prepare must go on as usual.
func (s *Snapshotter) prepareTarget(ctx context.Context, key, parent string, opts []snapshots.Opt) error {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return err
		}
	}
	target := info.Labels[remote.TargetLabel]
	if target == "" {
		return nil
	}
	layer, ok, err := s.remote.Layer(ctx, info.Labels, parent == "")
	if err != nil || !ok {
		return err
	}
	// The pin keeps the instance from the collection until the snapshot's record names it.
	defer layer.Pin.Release()
	name, err := s.commitTarget(ctx, key, parent, target, layer, opts)
	if err != nil {
		return fmt.Errorf("layer %s: %w", layer.Descriptor.Digest, err)
	}
	if layer.Program != nil && name != "" {
		s.startLater(pulled{name, layer.Image, *layer.Program})
	}
	step.Reached("target/committed")
	return fmt.Errorf("snapshot of the target %s: %w", target, errdefs.ErrAlreadyExists)
}

// commitTarget makes a committed snapshot of a layer and returns its name, unless there is one with this target and parent: containerd wants
// them unique.
func (s *Snapshotter) commitTarget(ctx context.Context, key, parent, target string, layer remote.Layer, opts []snapshots.Opt) (name string, err error) {
	from, err := sourceOf(ctx, layer.Descriptor, layer.Image, layer.DiffID)
	if err != nil {
		return "", err
	}
	err = s.update(ctx, func(ctx context.Context, r *records) error {
		found, err := hasTarget(ctx, target, parent)
		if err != nil || found {
			return err
		}
		created, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent, opts...)
		if err != nil {
			return notExisting(err)
		}
		id, err := parseSnapshotID(created.ID)
		if err != nil {
			return err
		}
		// The labels are given again: a committed snapshot has those of its commit only.
		name = fmt.Sprintf("%s@%d", target, id)
		if _, err := storage.CommitActive(ctx, key, name, snapshots.Usage{}, opts...); err != nil {
			return notExisting(err)
		}
		return errors.Join(r.put(id, record{Instance: layer.Instance.ID}), r.putSource(layer.Instance.ID, from))
	})
	return name, err
}

// hasTarget says whether there is a committed snapshot with this target and parent.
func hasTarget(ctx context.Context, target, parent string) (found bool, err error) {
	err = storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
		found = found || info.Kind == snapshots.KindCommitted
		return nil
	}, fmt.Sprintf("labels.%q==%q,parent==%q", remote.TargetLabel, target, parent))
	return found, ignoreNoSnapshots(err)
}

// notExisting keeps an error about a key from being taken for the answer that the target exists.
func notExisting(err error) error {
	if errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("%w: %v", errdefs.ErrFailedPrecondition, err) //nolint:errorlint // its class must not be seen
	}
	return err
}
