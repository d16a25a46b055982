package layerstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// withRoom calls build, which frees what it took when it fails. If that was for want of room on the disk and Options.MakeRoom makes some,
// it is called once more.
func (s *Store) withRoom(ctx context.Context, build func() error) error {
	err := build()
	if isFull(err) && s.makeRoom != nil && s.makeRoom(ctx) {
		err = build()
	}
	if !isFull(err) {
		return err
	}
	return Full(fmt.Errorf("%w%s", err, s.hint()))
}

// hint says how full the disk is, and what to do.
func (s *Store) hint() string {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return ""
	}
	free := int64(st.Bavail) * st.Bsize
	return fmt.Sprintf("\n  without this layer %s has %d MiB and %d inodes free: remove images that are not used, or make its filesystem or quota larger",
		s.dir, free>>20, st.Ffree)
}

// Full gives an error that a full disk or an exhausted quota caused the class errdefs.ErrResourceExhausted, and returns others as they are.
func Full(err error) error {
	if !isFull(err) || errdefs.IsResourceExhausted(err) {
		return err
	}
	return fullError{err}
}

func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// fullError adds a class to an error whose text says enough.
type fullError struct{ error }

func (e fullError) Unwrap() []error { return []error{e.error, errdefs.ErrResourceExhausted} }
