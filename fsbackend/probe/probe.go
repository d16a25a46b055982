// Package probe asks this kernel what it can do, by doing the smallest real thing.
//
// Every question has three answers:
//
//	nil                     it works
//	wraps ErrNotSupported   it does not, and the message says what is missing
//	any other error         could not tell (no right to ask, disk full, ...); this is never a "no"
//
// Version numbers stand in messages only: distributions carry features back. Nothing is cached. A question takes a few milliseconds
// at most, and its answer changes when a module is loaded or another filesystem is mounted on the directory.
//
// Questions about a directory are about the filesystem it lies on. They work in a directory of their own below it, .probe-*, which
// is gone when they return; what a killed process left behind is removed by the next question. All but DataDirFilesystem need root.
package probe

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/loop"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountapi"
)

// ErrNotSupported is wrapped by answers that mean no.
var ErrNotSupported = errors.New("not supported")

// HaveEROFS reports whether the kernel has EROFS, built in or as a module that it can load.
func HaveEROFS() error {
	c, err := mountapi.Open("erofs")
	if err != nil {
		return answer("EROFS", "needs CONFIG_EROFS_FS; try modprobe erofs", err)
	}
	c.Close()
	return nil
}

// answer sorts an error of the kernel into "no" and "could not tell". With what and needs it makes a line for the operator.
func answer(what, needs string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNotSupported):
		return fmt.Errorf("%s: %w", what, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%s: could not tell, needs root: %w", what, err)
	case meansNo(err):
		return fmt.Errorf("%s %w (%s): %w", what, ErrNotSupported, needs, err)
	}
	return fmt.Errorf("%s: could not tell: %w", what, err)
}

// meansNo knows the errors by which kernels refuse what they do not know. What is asked is known to be right, so an invalid
// argument is one that this kernel does not understand.
func meansNo(err error) bool {
	for _, no := range []error{unix.ENODEV, unix.ENOSYS, unix.EOPNOTSUPP, unix.EINVAL, unix.ENOTBLK, mountapi.ErrIgnored, loop.ErrNone} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}
