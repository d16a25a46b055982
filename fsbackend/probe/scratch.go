package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	scratchPattern = ".probe-*"
	// lowerName is the only mountpoint in a scratch directory.
	lowerName = "lower"
)

// scratch is a directory that one question has for itself. It is locked while in use, so that the next question can tell what a
// killed process left behind.
type scratch struct {
	path string
	lock *os.File
}

// newScratch makes a scratch directory below dir. Another process's question may take it for a stale one in the instant before it is
// locked; that bad luck is tried against a few times.
func newScratch(dir string) (*scratch, error) {
	removeStale(dir)
	var err error
	for range 8 {
		var s *scratch
		if s, err = tryScratch(dir); err == nil {
			return s, nil
		}
	}
	return nil, err
}

func tryScratch(dir string) (*scratch, error) {
	path, err := os.MkdirTemp(dir, scratchPattern)
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(path)
	if err != nil {
		os.Remove(path)
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// Another process may have taken it for abandoned between its making and its locking.
	if _, err := os.Lstat(path); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &scratch{path: path, lock: lock}, nil
}

// close removes everything.
func (s *scratch) close() {
	remove(s.path)
	s.lock.Close()
}

func (s *scratch) join(name string) string { return filepath.Join(s.path, name) }

// file makes a file with the given content.
func (s *scratch) file(name string, content []byte) (*os.File, error) {
	f, err := os.OpenFile(s.join(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(content); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func removeStale(dir string) {
	paths, _ := filepath.Glob(filepath.Join(dir, scratchPattern))
	for _, p := range paths {
		lock, err := lockDir(p)
		if err != nil {
			continue // in use
		}
		remove(p)
		lock.Close()
	}
}

// remove takes a scratch directory away. A mount that stayed would only be read-only EROFS: nothing is deleted through it.
func remove(path string) {
	unix.Unmount(filepath.Join(path, lowerName), unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	os.RemoveAll(path)
}

var errInUse = errors.New("in use")

func lockDir(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, errInUse
	}
	return f, nil
}
