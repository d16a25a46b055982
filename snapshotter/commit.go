package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// Commit makes a committed snapshot called name of the active snapshot called key. Its time does not depend on the size of
// the layer.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	var taken adoption
	err := s.update(ctx, func(ctx context.Context, r *records) error {
		// Everything that can be refused is refused before the upper directory is touched.
		committed, err := storage.CommitActive(ctx, key, name, snapshots.Usage{}, opts...)
		if err != nil {
			return err
		}
		id, err := parseSnapshotID(committed)
		if err != nil {
			return err
		}
		instance, err := s.layerOf(r, id, &taken)
		if err != nil {
			return err
		}
		step.Reached("commit/adopted")
		return r.put(id, record{Instance: instance, Adopted: taken.instance != ""})
	})
	if err != nil {
		return errors.Join(fmt.Errorf("commit snapshot %q as %q: %w", key, name, err), taken.undo(s))
	}
	taken.pin.Release()
	step.Reached("commit/done")
	wake(s.wakeConvert)
	wake(s.wakeCollect)
	return nil
}

// adoption is an upper directory that became an instance while the transaction is not yet committed.
type adoption struct {
	instance layerstore.ID
	pin      layerstore.Pin
	upper    string
}

func (a adoption) undo(s *Snapshotter) error {
	a.pin.Release()
	if a.instance == "" {
		return nil
	}
	return s.layers.ReturnDir(a.instance, a.upper)
}

// layerOf returns the instance that an active snapshot becomes: the one bound to it, or its upper directory.
func (s *Snapshotter) layerOf(r *records, id uint64, taken *adoption) (layerstore.ID, error) {
	rec, err := r.get(id)
	if err != nil {
		return "", err
	}
	upper := s.upperDir(id)
	if rec.Bound == "" {
		inst, pin, err := s.layers.AdoptDir(upper, strconv.FormatUint(id, 10))
		if err != nil {
			return "", err
		}
		*taken = adoption{instance: inst.ID, pin: pin, upper: upper}
		return inst.ID, nil
	}
	// A layer that came through the differ and was then written to: nothing can say both in one instance.
	written, err := firstEntry(upper)
	if err != nil {
		return "", err
	}
	if written != "" {
		return "", fmt.Errorf("it has the layer %s and files written beside it, such as %q: %w", rec.Bound, written, errdefs.ErrFailedPrecondition)
	}
	return rec.Bound, nil
}

// firstEntry returns a name in a directory, or "" if there is none.
func firstEntry(dir string) (string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return "", err
	}
	defer d.Close()
	names, err := d.Readdirnames(1)
	if err == io.EOF {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return names[0], nil
}
