package fsbackend

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountapi"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountinfo"
)

// stackedMounts bounds how many mounts on one mountpoint Unmount removes. There is one, or two when two processes raced.
const stackedMounts = 16

// Mounted reports whether target is a mountpoint. A target that does not exist is none.
func Mounted(target string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, target, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("statx %s: %w", target, err)
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, fmt.Errorf("statx %s: the kernel does not tell mountpoints (needs Linux 5.8): %w", target, ErrNotSupported)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// BindReadOnly shows the directory dir, which is no symbolic link, at the existing directory target, read-only, nosuid and nodev.
// Mounts below dir are not shown. When something is mounted on target already, it does nothing.
func BindReadOnly(dir, target string) error {
	mounted, err := Mounted(target)
	if err != nil || mounted {
		return err
	}
	m, err := mountapi.Clone(dir, mountapi.ReadOnly)
	if err != nil {
		return fmt.Errorf("bind %s on %s: %w", dir, target, err)
	}
	defer m.Close()
	if err := m.Attach(target); err != nil {
		return fmt.Errorf("bind %s on %s: %w", dir, target, err)
	}
	return nil
}

// Unmount removes whatever is mounted on target. Nothing mounted there, or no such directory, is not an error. A mount that is in
// use leaves the tree at once and ends with its last user.
func Unmount(target string) error {
	for range stackedMounts {
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		switch {
		case err == nil:
			// There may be another mount below it.
		case errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.EINVAL):
			// Not a mountpoint, which is how this ends well, or a mount that must not be removed.
			if mounted, merr := Mounted(target); merr == nil && !mounted {
				return nil
			}
			return fmt.Errorf("unmount %s: %w", target, err)
		default:
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	if mounted, err := Mounted(target); err != nil || mounted {
		return fmt.Errorf("unmount %s: still mounted after %d attempts", target, stackedMounts)
	}
	return nil
}

// MountsBelow returns the mountpoints below dir, but not dir itself, in the caller's mount namespace. Outer ones stand before
// inner ones, so unmount from the end. A mountpoint with several mounts is listed as often. Paths begin as dir does.
func MountsBelow(dir string) ([]string, error) {
	real, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	// The mount table knows no symbolic links.
	if real, err = filepath.EvalSymlinks(real); err != nil {
		return nil, fmt.Errorf("mounts below %s: %w", dir, err)
	}
	entries, err := mountinfo.Read(mountinfo.Self)
	if err != nil {
		return nil, fmt.Errorf("mounts below %s: %w", dir, err)
	}
	prefix := strings.TrimSuffix(real, "/") + "/"
	var points []string
	for _, e := range entries {
		if rest, ok := strings.CutPrefix(e.Point, prefix); ok && rest != "" {
			points = append(points, filepath.Join(dir, rest))
		}
	}
	slices.Sort(points)
	return points, nil
}
