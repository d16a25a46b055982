package target

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Attr are flags of a mount, unix.MOUNT_ATTR_*.
type Attr uint64

// Mount is a mount that is attached nowhere yet. It is gone with Close, unless it was attached.
type Mount struct{ fd int }

// Clone makes a mount that shows what is mounted on dir, with exactly the flags attr of read-only, nosuid and nodev.
func Clone(dir string, attr Attr) (*Mount, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return nil, fmt.Errorf("open_tree %s: %w", dir, err)
	}
	const flags = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	// Private, because a clone is a peer of its original: what users mount inside of one would appear in the other.
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set: uint64(attr), Attr_clr: flags &^ uint64(attr), Propagation: unix.MS_PRIVATE,
	})
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("mount_setattr on the clone of %s: %w", dir, err)
	}
	return &Mount{fd}, nil
}

// ID is the mount's number, which it keeps when it is attached. Linux 6.8 and later never use it again until a reboot.
func (m *Mount) ID() (uint64, error) {
	id, _, err := identify(m.fd, "")
	return id, err
}

// Close lets go of the mount.
func (m *Mount) Close() { unix.Close(m.fd) }

// Mounted returns the number of the mount on path, the topmost if there are several; ok is false when there is none. A path that does not
// exist, or no longer leads to a directory, is no mountpoint.
func Mounted(path string) (id uint64, ok bool, err error) {
	id, ok, err = identify(unix.AT_FDCWD, path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return 0, false, nil
	}
	return id, ok, err
}

// identify returns the number of the mount that path in dir is on (dir itself if path is empty), and whether it is the root of that mount.
func identify(dir int, path string) (id uint64, root bool, err error) {
	var st unix.Statx_t
	err = unix.Statx(dir, path, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID|unix.STATX_MNT_ID_UNIQUE, &st)
	switch {
	case err != nil:
		return 0, false, fmt.Errorf("statx %s: %w", path, err)
	case st.Mask&(unix.STATX_MNT_ID|unix.STATX_MNT_ID_UNIQUE) == 0 || st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0:
		return 0, false, errors.New("the kernel does not tell mounts (needs Linux 5.8)")
	}
	return st.Mnt_id, st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// Unmount takes the topmost mount from path, whose parents are walked and checked as for Prepare. A mount that processes use is EBUSY.
func Unmount(path string) error {
	parent, base, err := walk(path)
	if err != nil {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	defer unix.Close(parent)
	// The name is looked up in the open parent, and an open file in the mount itself would keep it busy.
	err = unix.Unmount(filepath.Join("/proc/self/fd", strconv.Itoa(parent), base), unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("unmount %s: %w\n  `fuser -vm %s` lists the processes that have files open there or work in it", path, err, path)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}
