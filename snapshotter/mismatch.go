package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// Mismatched says that a lazy instance is not what its image says. New containers get an instance that is made from the whole layer, if that is
// what the image says; otherwise none. Those that run keep what they have.
func (s *Snapshotter) Mismatched(ctx context.Context, id layerstore.ID, cause error) {
	users, _, _, err := s.usersOf(ctx, id)
	if err != nil {
		s.log.Warn("users of a layer not found", "instance", id, "cause", err)
	}
	s.log.Error("a layer is not what its image says: do not trust this image, and stop its containers", "instance", id, "snapshots", users, "cause", cause)
	if err := s.layers.SetMismatch(id, cause); err != nil {
		s.log.Error("not noted that a layer is not what its image says", "instance", id, "cause", err)
	}
	wake(s.wakeRestore)
}

// replaceMismatched makes instances from whole layers in the place of those that are not what their images say. Frozen lowers go on naming the
// latter.
func (s *Snapshotter) replaceMismatched(ctx context.Context) error {
	var errs []error
	for _, inst := range s.layers.List() {
		if inst.Lazy == nil || inst.Lazy.Mismatch == "" || inst.Lazy.Hopeless {
			continue
		}
		if err := s.replaceMismatch(ctx, inst); err != nil {
			errs = append(errs, fmt.Errorf("layer %s, which is not what its image says, is not replaced: %w", inst.Layer, err))
		}
	}
	return errors.Join(errs...)
}

func (s *Snapshotter) replaceMismatch(ctx context.Context, inst layerstore.Instance) error {
	var moved []uint64
	var from source
	err := s.view(ctx, func(_ context.Context, r *records) error {
		moved = r.committed(inst.ID)
		from, _ = r.source(inst.ID)
		return nil
	})
	if err != nil || len(moved) == 0 {
		return err
	}
	whole, pin, err := s.layers.Import(ctx, inst.Layer, func(ctx context.Context) (io.ReadCloser, error) { return s.openAgain(ctx, from) })
	if err != nil {
		return err
	}
	defer pin.Release()
	if whole.DiffID != inst.Lazy.DiffID {
		err := fmt.Errorf("its diffID is %s, the image's configuration says %s", whole.DiffID, inst.Lazy.DiffID)
		return errors.Join(err, s.layers.SetHopeless(inst.ID)) // not fetched again
	}
	return s.update(ctx, func(_ context.Context, r *records) error {
		moved = r.committed(inst.ID)
		for _, snapshot := range moved {
			if err := r.put(snapshot, record{Instance: whole.ID}); err != nil {
				return err
			}
		}
		if len(moved) == 0 {
			return nil
		}
		return r.putSource(whole.ID, from)
	})
}
