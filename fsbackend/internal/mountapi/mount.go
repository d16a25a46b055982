package mountapi

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Attr are flags of a mount.
type Attr uint64

// ReadOnly is how everything of ours is mounted in the host's tree: nothing is written, and neither set-id bits nor device nodes
// of an image take effect.
const ReadOnly Attr = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// Mount is a mount that is attached nowhere at first. Its root can be read all the same.
type Mount struct{ fd int }

// Received makes a Mount of a descriptor that was another process's.
func Received(fd int) *Mount { return &Mount{fd: fd} }

// Descriptor is what another process may make a Mount of. It is m's.
func (m *Mount) Descriptor() int { return m.fd }

// Clone makes a mount that shows the directory dir, without the mounts below it.
func Clone(dir string, a Attr) (*Mount, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return nil, fmt.Errorf("open_tree %s: %w", dir, err)
	}
	m := &Mount{fd: fd}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: uint64(a)}); err != nil {
		m.Close()
		return nil, fmt.Errorf("mount_setattr on the clone of %s: %w", dir, err)
	}
	return m, nil
}

// Attach puts the mount on an existing directory.
func (m *Mount) Attach(target string) error {
	if err := unix.MoveMount(m.fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount to %s: %w", target, err)
	}
	return nil
}

// Path names the mount's root for this process, also before it is attached.
func (m *Mount) Path() string { return fmt.Sprintf("/proc/self/fd/%d", m.fd) }

// Open opens a file below the mount's root.
func (m *Mount) Open(name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(m.fd, name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "openat", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), filepath.Base(name)), nil
}

// Statfs describes the mounted filesystem.
func (m *Mount) Statfs() (unix.Statfs_t, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(m.fd, &st); err != nil {
		return st, fmt.Errorf("fstatfs: %w", err)
	}
	return st, nil
}

// Close lets go of the mount. If it was not attached, it is gone.
func (m *Mount) Close() { unix.Close(m.fd) }
