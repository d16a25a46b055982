package cachefiles

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// fileMost is the longest name of a file.
const fileMost = 255

// Cull has the kernel remove a cache file, by its name in a directory of the cache, and with it the space. ErrInUse says that a mount uses it.
// A file that is not there is no error.
func (d *Device) Cull(dir, name string) error {
	err := d.inDirectory(dir, "cull", name)
	switch {
	case errors.Is(err, unix.EBUSY):
		err = fmt.Errorf("%w: %w", ErrInUse, err)
	case errors.Is(err, unix.ESTALE), errors.Is(err, unix.ENOENT):
		return nil
	}
	if err != nil {
		return fmt.Errorf("cull %s in %s: %w", name, dir, err)
	}
	return nil
}

// InUse asks the kernel whether a cache file is in use. One that is not there is not.
func (d *Device) InUse(dir, name string) (bool, error) {
	err := d.inDirectory(dir, "inuse", name)
	switch {
	case errors.Is(err, unix.EBUSY):
		return true, nil
	case err == nil, errors.Is(err, unix.ESTALE), errors.Is(err, unix.ENOENT):
		return false, nil
	}
	return false, fmt.Errorf("ask whether %s in %s is in use: %w", name, dir, err)
}

// inDirectory gives a command that is about a name in the working directory of the thread that writes it. The thread is one of its own, with
// a working directory of its own, and ends with its goroutine: that stays locked to it.
func (d *Device) inDirectory(dir, command, name string) error {
	if err := checkName(name, fileMost); err != nil {
		return err
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- d.writeIn(dir, command+" "+name)
	}()
	return <-done
}

func (d *Device) writeIn(dir, command string) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare the working directory: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	// The first thread of a process does not end, and would keep the directory.
	defer unix.Chdir("/")
	return d.command(command)
}
