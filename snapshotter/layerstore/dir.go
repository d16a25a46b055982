package layerstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
)

// AdoptDir makes a directory instance of an upper directory by renaming it, and pins it. It takes a few small syncs, however
// large the directory is. origin, the snapshot id, is recorded so that an adoption that nobody remembers can be undone.
//
// On an error the directory is where it was.
func (s *Store) AdoptDir(upper, origin string) (Instance, Pin, error) {
	opaque, err := opaqueRoot(upper)
	if err != nil {
		return Instance{}, Pin{}, fmt.Errorf("adopt directory %s: %w", upper, err)
	}
	inst := Instance{ID: randomID(), Kind: Directory, OpaqueRoot: opaque, Origin: origin, Created: time.Now().UTC()}
	if err := s.adopt(upper, inst); err != nil {
		return Instance{}, Pin{}, fmt.Errorf("adopt directory %s: %w", upper, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instances[inst.ID] = inst
	return inst, s.pin(inst.ID), nil
}

func (s *Store) adopt(upper string, inst Instance) (err error) {
	work, home := filepath.Join(s.dir, buildingPrefix+string(inst.ID)), s.path(inst.ID)
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(work), os.RemoveAll(home))
		}
	}()
	if err := os.Mkdir(work, 0o700); err != nil {
		return err
	}
	if err := writeRecord(work, inst); err != nil {
		return err
	}
	step.Reached("layerstore/adopt/written")
	if err := os.Rename(work, home); err != nil {
		return err
	}
	step.Reached("layerstore/adopt/placed")
	tree := s.DirPath(inst.ID)
	if err := os.Rename(upper, tree); err != nil {
		return err
	}
	step.Reached("layerstore/adopt/renamed")
	// The upper directory must be back before the deferred removal of home.
	if err := errors.Join(syncDir(home), syncDir(s.dir)); err != nil {
		return errors.Join(err, os.Rename(tree, upper))
	}
	return nil
}

// ReturnDir undoes AdoptDir: it renames the tree of a directory instance to upper, which must not exist, and forgets the
// instance. Pins are ignored: the caller is who adopted it, or runs alone at start.
func (s *Store) ReturnDir(id ID, upper string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	inst, ok := s.instances[id]
	if !ok || inst.Kind != Directory {
		return fmt.Errorf("return directory instance %s: %w", id, errdefs.ErrNotFound)
	}
	// Not os.Rename alone: it replaces an empty directory.
	if err := unix.Renameat2(unix.AT_FDCWD, s.DirPath(id), unix.AT_FDCWD, upper, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("return directory instance %s to %s: %w", id, upper, err)
	}
	delete(s.instances, id)
	delete(s.dirUsage, id)
	step.Reached("layerstore/return/renamed")
	return os.RemoveAll(s.path(id))
}

// ConvertDir makes an EROFS instance with a random id from a directory instance, and pins it. The directory stays.
func (s *Store) ConvertDir(ctx context.Context, id ID) (Instance, Pin, error) {
	dirPin, err := s.Pin(id)
	if err != nil {
		return Instance{}, Pin{}, err
	}
	defer dirPin.Release()
	to := randomID()
	inst, err := s.make(ctx, to, func(ctx context.Context, t converter.Target) (Instance, error) {
		res, err := s.fromDir(ctx, s.DirPath(id), t, s.limits)
		inst := fromResult(res)
		inst.Origin = string(id)
		return inst, err
	})
	if err != nil {
		return Instance{}, Pin{}, fmt.Errorf("convert directory instance %s: %w", id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instances[to] = inst
	return inst, s.pin(to), nil
}

// opaqueRoot reports whether a differ that wrote into the upper directory has marked its root as opaque.
func opaqueRoot(dir string) (bool, error) {
	var value [8]byte
	n, err := unix.Lgetxattr(dir, "trusted.overlay.opaque", value[:])
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read attribute trusted.overlay.opaque: %w", err)
	}
	return string(value[:n]) == "y", nil
}
