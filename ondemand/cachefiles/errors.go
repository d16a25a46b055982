package cachefiles

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var (
	// ErrNotSupported is wrapped by errors that say that this kernel cannot load on demand through cachefiles.
	ErrNotSupported = errors.New("not supported")
	// ErrBusy says that another process has the device: the host has one.
	ErrBusy = errors.New("used by another process")
	// ErrUnfit says that the cache directory, or its filesystem, is not fit for a cache.
	ErrUnfit = errors.New("not fit for a cache")
	// ErrNoRestore says that this kernel does not show again what a predecessor had read and not answered.
	ErrNoRestore = errors.New("the kernel cannot restore requests")
	// ErrDead says that the kernel has given the cache up: it takes no command and asks for nothing any more.
	ErrDead = errors.New("the kernel has given the cache up")
	// ErrInUse says that a cache file is in use, and so cannot be culled.
	ErrInUse = errors.New("cache file is in use")
)

const needs = "needs Linux 5.19 to 7.1 with CONFIG_CACHEFILES_ONDEMAND and CONFIG_EROFS_FS_ONDEMAND"

// explainOpen says what an error means when the device is opened, and what to do.
func explainOpen(err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %w: %s is used %s (it has one user on a host: stop nydusd or cachefilesd, or what a former daemon has started)",
			ErrBusy, err, devicePath, named(Holders()))
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: %w (try modprobe cachefiles; %s)", ErrNotSupported, err, needs)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w (needs root outside of any user namespace)", err)
	}
	return err
}

// explainBind says what an error of bind means. The directory was tried before, as far as it can be.
func explainBind(dir string, err error) error {
	switch {
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("on-demand mode %w: %w (%s; dmesg says more)", ErrNotSupported, err, needs)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EROFS), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR),
		errors.Is(err, unix.EIO):
		return fmt.Errorf("cache directory %s is %w: %w (%s; dmesg says more)", dir, ErrUnfit, err, fit)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("cache directory %s: %w: %w (another cache has it, or this device has one already)", dir, ErrBusy, err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ENOBUFS):
		return fmt.Errorf("cache directory %s: %w (make room, or lower the limits)", dir, err)
	}
	return fmt.Errorf("cache directory %s: %w", dir, err)
}

// explainRestore tells a kernel that does not know the command from one that has failed.
func explainRestore(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: %w (needs Linux 6.8, or a later update of 6.1 or 6.6, and a device that is bound)", ErrNoRestore, err)
	}
	return err
}

// noRoom says whether data were refused because the filesystem of the cache is full, or has less free space than the limits want.
func noRoom(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EDQUOT)
}
