package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// Prepare makes an active snapshot on top of parent and returns how to mount it. If the snapshot is for a layer that was announced and can
// be made ready, a committed one is made instead, and the error is errdefs.ErrAlreadyExists.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	if err := s.prepareTarget(ctx, key, parent, opts); err != nil {
		return nil, fmt.Errorf("prepare snapshot %q: %w", key, err)
	}
	return s.create(ctx, snapshots.KindActive, key, parent, opts)
}

// View makes a read-only snapshot of parent and returns how to mount it.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindView, key, parent, opts)
}

// create makes a snapshot in one transaction, which freezes and refers to its lowers, so that none of them can be collected
// while it is mounted afterwards. If that fails the snapshot is removed again.
func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) ([]mount.Mount, error) {
	if err := s.restore(ctx, parent); err != nil {
		return nil, fmt.Errorf("prepare snapshot %q: %w", key, err)
	}
	st, err := s.enter(ctx, kind, key, parent, opts)
	if err != nil {
		return nil, err
	}
	step.Reached("prepare/entered")
	mounts, err := s.provide(ctx, st)
	if err == nil {
		err = s.inheritRoot(st)
	}
	if err != nil {
		err = fmt.Errorf("prepare snapshot %q: %w", key, err)
		return nil, errors.Join(err, s.withdraw(context.WithoutCancel(ctx), st.snapshot))
	}
	step.Reached("prepare/mounted")
	return mounts, nil
}

// withdraw removes the active snapshot or view with this id, if it is still there. By now its key may be another one's.
func (s *Snapshotter) withdraw(ctx context.Context, id uint64) error {
	err := s.update(ctx, func(ctx context.Context, r *records) error {
		keys, err := storage.IDMap(ctx)
		if err != nil {
			return err
		}
		key, ok := keys[strconv.FormatUint(id, 10)]
		if !ok {
			return nil
		}
		_, kind, err := snapshotKind(ctx, key)
		if err != nil || kind == snapshots.KindCommitted { // somebody took it as it is
			return err
		}
		if _, _, err := storage.Remove(ctx, key); err != nil {
			return err
		}
		return r.remove(id)
	})
	wake(s.wakeCollect)
	return err
}

// enter writes a new snapshot into the metadata and makes its directory.
func (s *Snapshotter) enter(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) (stack, error) {
	var st stack
	err := s.update(ctx, func(ctx context.Context, r *records) error {
		created, err := storage.CreateSnapshot(ctx, kind, key, parent, opts...)
		if err != nil {
			return err
		}
		id, err := parseSnapshotID(created.ID)
		if err != nil {
			return err
		}
		lowers, err := s.freeze(r, created.ParentIDs)
		if err != nil {
			return fmt.Errorf("snapshot %q on %q: %w", key, parent, err)
		}
		rec := record{Lowers: lowers}
		if err := r.put(id, rec); err != nil {
			return err
		}
		if st, err = s.stackOf(r, id, kind, rec); err != nil {
			return err
		}
		return s.makeSnapshotDir(st)
	})
	return st, err
}

// freeze returns the instances that the snapshots with these ids consist of now, in their order.
func (s *Snapshotter) freeze(r *records, parents []string) ([]layerstore.ID, error) {
	ids := make([]layerstore.ID, 0, len(parents))
	for _, parent := range parents {
		id, err := parseSnapshotID(parent)
		if err != nil {
			return nil, err
		}
		rec, err := r.get(id)
		if err != nil {
			return nil, err
		}
		ids = append(ids, rec.Instance)
	}
	return s.effective(ids)
}

// effective leaves out the layers that contribute nothing to a stack, top first.
//
// Below an opaque root nothing is visible, but overlayfs does not look for that mark on a root. And it refuses a stack that
// has one directory twice (ELOOP), which images do have: the same layer twice, often an empty one. The lower of the two can
// go: whatever it has at a path, the upper one has too, and ends or goes on the search for that path in the same way.
func (s *Snapshotter) effective(ids []layerstore.ID) ([]layerstore.ID, error) {
	var stack []layerstore.ID
	for _, id := range ids {
		inst, err := s.layers.Get(id)
		if err != nil {
			return nil, err
		}
		if inst.Lazy != nil && inst.Lazy.Mismatch != "" {
			return nil, fmt.Errorf("layer %s: %s\n  do not use this image; remove it, and ask who has made it", inst.Layer, inst.Lazy.Mismatch)
		}
		if !slices.Contains(stack, id) {
			stack = append(stack, id)
		}
		if inst.OpaqueRoot {
			break
		}
	}
	return stack, nil
}

// makeSnapshotDir makes the directory of a new snapshot, if it needs one. It is called inside of the write transaction that
// made the snapshot. When such a transaction fails to commit, its number is used again: what it left is put out of the way.
func (s *Snapshotter) makeSnapshotDir(st stack) error {
	names := []string{"upper", "work"}
	if st.kind == snapshots.KindView {
		names = names[:1]
		if len(st.lowers) > 0 {
			return nil // it consists of mounts of instances only
		}
	}
	dir := s.snapshotDir(st.snapshot)
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		if err = s.layers.DiscardDir(dir); err == nil {
			err = os.Mkdir(dir, 0o700)
		}
	}
	if err != nil {
		return err
	}
	step.Reached("prepare/directory")
	for _, name := range names {
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(path, 0o755); err != nil { // whatever the umask is
			return err
		}
	}
	return nil
}

// inheritRoot gives the upper directory of a new active snapshot the mode and owner of the root below it: overlayfs shows
// those of the upper directory.
func (s *Snapshotter) inheritRoot(st stack) error {
	if st.kind != snapshots.KindActive || len(st.lowers) == 0 {
		return nil
	}
	fi, err := os.Stat(s.mountDir(st.lowers[0].n))
	if err != nil {
		return err
	}
	owner, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: no file status", fi.Name())
	}
	upper := s.upperDir(st.snapshot)
	// The mode comes second: a change of owner clears the set-id bits.
	return errors.Join(os.Lchown(upper, int(owner.Uid), int(owner.Gid)), syscall.Chmod(upper, owner.Mode&0o7777))
}
