package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Usage is what something takes on disk, of the filesystem that the store is on.
type Usage struct {
	Bytes, Inodes int64
}

// Usage returns what an instance takes on disk, with its directory and layer.json: of a small layer they are a good part. A directory
// instance is walked once; it does not change, so the answer is kept. The few files of an image are looked at each time: filesystems give
// blocks at the end of a file back later.
func (s *Store) Usage(ctx context.Context, id ID) (Usage, error) {
	inst, err := s.Get(id)
	if err != nil {
		return Usage{}, err
	}
	if inst.Partial() {
		return Usage{Bytes: inst.Lazy.FinalBytes, Inodes: lazyInodes}, nil
	}
	if inst.Kind == EROFS {
		return DirUsage(ctx, s.path(id))
	}
	s.mu.Lock()
	u, known := s.dirUsage[id]
	s.mu.Unlock()
	if known {
		return u, nil
	}
	if u, err = DirUsage(ctx, s.path(id)); err != nil {
		return Usage{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.instances[id]; ok {
		s.dirUsage[id] = u
	}
	return u, nil
}

// lazyInodes are the directory of a lazy instance and the files in it.
const lazyInodes = 6

// DirUsage adds up the allocated blocks of a tree, which may change meanwhile. Hard links count once.
func DirUsage(ctx context.Context, dir string) (Usage, error) {
	var u Usage
	seen := map[uint64]struct{}{} // inodes with more than one link; a tree of ours is on one filesystem
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var fi os.FileInfo
		if err == nil {
			fi, err = d.Info()
		}
		if errors.Is(err, fs.ErrNotExist) && path != dir {
			return nil // removed while we walk
		}
		if err != nil {
			return err
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("%s: no file status", path)
		}
		if !fi.IsDir() && st.Nlink > 1 {
			if _, again := seen[st.Ino]; again {
				return nil
			}
			seen[st.Ino] = struct{}{}
		}
		u.Inodes++
		u.Bytes += st.Blocks * 512 // the unit of st_blocks, whatever the block size
		return nil
	})
	if err != nil {
		return Usage{}, fmt.Errorf("disk usage of %s: %w", dir, err)
	}
	return u, nil
}
