package startup

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// file is a regular file of the tree.
type file struct {
	*os.File
	path string // in the tree, without symbolic links
	size int64
}

var (
	errSeen = errors.New("was opened before")
	errFull = errors.New("too many files")
)

// find opens a regular file below the root; errSeen says that it was opened before. Of programs only executable ones are found.
func (f *fetch) find(name string, executable bool) (*file, error) {
	if !f.mayTry() {
		return nil, errFull
	}
	// At first without opening what has the name: the open of a device can do things, and that of a FIFO waits.
	handle, err := unix.Openat2(int(f.root.Fd()), name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(handle)
	var st unix.Stat_t
	if err := unix.Fstat(handle, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || executable && st.Mode&0o111 == 0 {
		return nil, fmt.Errorf("%s: %w", name, unix.EACCES)
	}
	if err := f.mayOpen(inode{uint64(st.Dev), st.Ino}); err != nil {
		return nil, err
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", handle), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	opened := &file{File: os.NewFile(uintptr(fd), name), size: st.Size}
	// Exactly what is asked for: what the kernel reads ahead would be fetched as well.
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM)
	opened.path, err = nameOf(opened.File)
	f.opened(opened)
	if err != nil {
		return nil, err
	}
	if f.base != "/" {
		opened.path = strings.TrimPrefix(opened.path, f.base)
	}
	return opened, nil
}

// mayTry says whether one more name may be tried.
func (f *fetch) mayTry() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tried++
	if f.tried > maxNames {
		f.report.Full = true
	}
	return f.tried <= maxNames && !f.ended
}

// mayOpen notes a file that will be opened.
func (f *fetch) mayOpen(i inode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.seen[i]:
		return errSeen
	case len(f.seen) >= maxFiles:
		f.report.Full = true
		return errFull
	}
	f.seen[i] = true
	return nil
}

func (f *fetch) opened(one *file) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open = append(f.open, one)
	f.report.Files++
}

// nameOf is what the kernel calls an open file. Below a mount that is attached nowhere names begin at its root.
func nameOf(f *os.File) (string, error) {
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}
