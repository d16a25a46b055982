package cachefiles

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// fileMost is the longest name of a file.
const fileMost = 255

// Cull has the kernel remove a cache file, by its name in a directory of the cache, and with it the space. ErrInUse says that a mount uses it.
// A file that is not there is no error.
func (d *Device) Cull(dir, name string) error {
	err := in(dir, func() error { return d.about("cull", name) })
	switch {
	case errors.Is(err, unix.EBUSY):
		err = fmt.Errorf("%w: %w", ErrInUse, err)
	case isGone(err):
		return nil
	}
	if err != nil {
		return fmt.Errorf("cull %s in %s: %w", name, dir, err)
	}
	return nil
}

// isGone is about a cache file that is not there, or whose name has become another file's.
func isGone(err error) bool { return errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOENT) }

// InUse asks the kernel whether a cache file is in use. One that is not there is not.
func (d *Device) InUse(dir, name string) (bool, error) {
	err := in(dir, func() error { return d.about("inuse", name) })
	switch {
	case errors.Is(err, unix.EBUSY):
		return true, nil
	case err == nil, isGone(err):
		return false, nil
	}
	return false, fmt.Errorf("ask whether %s in %s is in use: %w", name, dir, err)
}

// Check returns ErrDead if the kernel has given the cache up, as it does after an I/O error of the filesystem below. It says so to nobody: there
// are no messages any more, and every command fails.
func (d *Device) Check() error {
	// No kernel has this command; those that live say so.
	if err := d.command("alive"); errors.Is(err, unix.EIO) {
		return fmt.Errorf("%w (%w; dmesg says more)", ErrDead, err)
	}
	return nil
}

// about gives a command that is about a name in the working directory of the thread that writes it.
func (d *Device) about(command, name string) error {
	if err := checkName(name, fileMost); err != nil {
		return err
	}
	return d.command(command + " " + name)
}

// Sweep culls all cache files that are not in use, and returns how many those are, and how many bytes of the disk they had. Options.Dir must be
// known, also after Adopt. What is in use is left alone, and what is culled is asked for again by the next mount. But a mount that begins to use
// a file in the moment in which the kernel removes it fails, or cannot read its data (ENOBUFS): so nothing should be mounted meanwhile.
//
// An error is about a single file or directory; the others are swept nevertheless.
func (d *Device) Sweep() (files int, bytes int64, err error) {
	if d.o.Dir == "" {
		return 0, 0, errors.New("sweep the cache: its directory is not known")
	}
	// <dir>/cache/I<volume key>/@<byte of a hash>/<name of a cache file>
	shards, err := filepath.Glob(filepath.Join(globQuote(d.o.Dir), "cache", "I*", "@*"))
	errs := []error{err}
	for _, shard := range shards {
		n, b, err := d.sweep(shard)
		files, bytes = files+n, bytes+b
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return files, bytes, fmt.Errorf("sweep the cache in %s: %w", d.o.Dir, err)
	}
	return files, bytes, nil
}

// globQuote has every byte of a path stand for itself in a pattern.
func globQuote(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

func (d *Device) sweep(dir string) (files int, bytes int64, err error) {
	list, err := os.ReadDir(dir)
	if err == nil && len(list) > 0 {
		err = in(dir, func() error {
			var errs []error
			for _, e := range list {
				size := allocated(e)
				err := d.about("cull", e.Name())
				switch {
				case err == nil:
					files, bytes = files+1, bytes+size
				case !isGone(err) && !errors.Is(err, unix.EBUSY):
					errs = append(errs, fmt.Errorf("cull %s in %s: %w", e.Name(), dir, err))
				}
			}
			return errors.Join(errs...)
		})
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return files, bytes, err
}

// allocated is how much of the disk a file has, and 0 for one that has gone.
func allocated(e fs.DirEntry) int64 {
	info, err := e.Info()
	if err != nil {
		return 0
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return 0
}

// in runs f with a working directory. That belongs to a thread of its own, which ends with its goroutine: that stays locked to it.
func in(dir string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- inThread(dir, f)
	}()
	return <-done
}

func inThread(dir string, f func() error) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare the working directory: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	// The first thread of a process does not end, and would keep the directory.
	defer unix.Chdir("/")
	return f()
}
