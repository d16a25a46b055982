package fanotify

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// explain says what an error of the kernel means when a group is made: that it cannot do this at all, or something that can be changed.
func explain(call string, err error) error {
	const needs = "needs Linux 6.14 with CONFIG_FANOTIFY_ACCESS_PERMISSIONS, and the data on ext4, xfs or btrfs"
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("pre-content events %w (%s): %s: %w", ErrNotSupported, needs, call, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s: %w (needs root)", call, err)
	case errors.Is(err, unix.EMFILE):
		return fmt.Errorf("%s: %w (raise sysctl %s, or the limit of open files)", call, err, groupsSysctl)
	}
	return fmt.Errorf("%s: %w", call, err)
}

// watches says whether group is a fanotify group that watches the inode, or nothing at all. Another inode is an error: data would be filled
// in one file while another one is read.
func watches(group *os.File, ino uint64) (bool, error) {
	path := fmt.Sprintf("/proc/self/fdinfo/%d", group.Fd())
	text, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	inodes, err := parseMarks(string(text))
	if err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	for _, i := range inodes {
		if i != ino {
			return false, fmt.Errorf("the group watches inode %d, not %d", i, ino)
		}
	}
	return len(inodes) > 0, nil
}
