package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
)

// AdoptDir makes a directory instance of an upper directory by renaming it, and pins it. It changes a few directory entries and
// syncs nothing, however large the directory is. origin, the snapshot id, is kept so that an adoption that nobody remembers
// can be undone.
//
// On an error the directory is where it was.
func (s *Store) AdoptDir(upper, origin string) (Instance, Pin, error) {
	return s.AdoptDirAs(randomID(), upper, origin)
}

// AdoptDirAs does what AdoptDir does, for an adoption that was cut short and has to be repeated under its id.
func (s *Store) AdoptDirAs(id ID, upper, origin string) (Instance, Pin, error) {
	if err := s.adopt(id, upper, origin); err != nil {
		return Instance{}, Pin{}, fmt.Errorf("adopt directory %s: %w", upper, err)
	}
	inst, err := s.readDirectory(id)
	if err != nil {
		err = errors.Join(err, os.Rename(s.DirPath(id), upper), os.RemoveAll(s.path(id)))
		return Instance{}, Pin{}, fmt.Errorf("adopt directory %s: %w", upper, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instances[id] = inst
	return inst, s.pin(id), nil
}

func (s *Store) adopt(id ID, upper, origin string) (err error) {
	home := s.path(id)
	if err := os.Mkdir(home, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(home))
		}
	}()
	step.Reached("layerstore/adopt/made")
	if err := os.Symlink(origin, filepath.Join(home, originName)); err != nil {
		return err
	}
	step.Reached("layerstore/adopt/named")
	if err := os.Rename(upper, s.DirPath(id)); err != nil {
		return err
	}
	step.Reached("layerstore/adopt/renamed")
	return nil
}

// readDirectory describes the directory instance id from what is on disk.
func (s *Store) readDirectory(id ID) (Instance, error) {
	fi, err := os.Lstat(s.DirPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return Instance{}, errNoTree
	}
	if err != nil {
		return Instance{}, err
	}
	if !fi.IsDir() {
		return Instance{}, fmt.Errorf("%s is not a directory", dirName)
	}
	origin, err := os.Readlink(filepath.Join(s.path(id), originName))
	if err != nil {
		return Instance{}, err
	}
	opaque, err := opaqueRoot(s.DirPath(id))
	if err != nil {
		return Instance{}, err
	}
	home, err := os.Lstat(s.path(id))
	if err != nil {
		return Instance{}, err
	}
	return Instance{ID: id, Kind: Directory, Origin: origin, OpaqueRoot: opaque, Created: home.ModTime().UTC()}, nil
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
		if err != nil {
			return Instance{}, err
		}
		s.log.Debug("directory converted", "instance", to, "from", id, "image_bytes", res.MetaBytes+res.DataBytes, "inodes", res.Inodes, dropped(res))
		inst := fromResult(res)
		inst.Origin = string(id)
		return inst, nil
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
