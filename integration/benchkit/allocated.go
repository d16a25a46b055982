package benchkit

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Allocated is the disk space of everything below the directories, without the directory except. Files with several names count
// once, file systems mounted below do not count, and a directory that does not exist has no size.
func Allocated(except string, dirs ...string) (int64, error) {
	s := spaceCount{except: except, seen: map[file]bool{}}
	for _, dir := range dirs {
		if err := s.add(dir); err != nil {
			return 0, fmt.Errorf("disk space of %s: %w", dir, err)
		}
	}
	return s.bytes, nil
}

type file struct{ device, inode uint64 }

type spaceCount struct {
	except string
	seen   map[file]bool
	bytes  int64
}

func (s *spaceCount) add(dir string) error {
	var root unix.Stat_t
	if err := unix.Lstat(dir, &root); errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return err
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist): // a temporary file of a daemon that runs
			return nil
		case err != nil:
			return err
		case d.IsDir() && (path == s.except || st.Dev != root.Dev):
			return filepath.SkipDir
		}
		id := file{st.Dev, st.Ino}
		if st.Dev == root.Dev && !s.seen[id] {
			s.seen[id] = true
			s.bytes += st.Blocks * 512
		}
		return nil
	})
}
