// Package target puts a mount on a directory that a user named, and takes it away, so that nobody else can lead it elsewhere.
//
// A path is walked one component at a time, each opened in the directory before it. A symbolic link anywhere is refused. So is a
// directory above the target in which others may rename: one that is not of root or the caller, or that its group or all may write,
// with the sticky bit or without (it keeps names from being moved, not from being made first). What was walked is held open, and the
// mount goes to the open directory, not to a path.
package target

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Clean returns the absolute path by which a target is known.
func Clean(path string) (string, error) {
	if path == "" {
		return "", errors.New("the name of the directory is empty")
	}
	if filepath.IsAbs(path) {
		return filepath.Clean(path), nil
	}
	// Not os.Getwd: that may return a path with symbolic links, from $PWD.
	cwd, err := unix.Getwd()
	if err != nil {
		return "", fmt.Errorf("working directory: %w", err)
	}
	return filepath.Join(cwd, path), nil
}

// Dir is an open directory.
type Dir struct {
	path    string
	parent  int // file descriptors, opened with O_PATH
	fd      int
	created bool
}

// errNone says that the target itself does not exist.
var errNone = fmt.Errorf("it does not exist: %w", os.ErrNotExist)

// Prepare opens a directory for something to be mounted on it, and makes it if it is not there. It must be empty and no mountpoint.
func Prepare(path string) (*Dir, error) {
	d, err := open(path)
	if errors.Is(err, errNone) {
		d, err = create(path)
	}
	if err == nil {
		err = d.mustBeFree()
		if err != nil {
			d.Abandon()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", path, err)
	}
	return d, nil
}

// create makes the directory, but none above it.
func create(path string) (*Dir, error) {
	parent, base, err := walk(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Mkdirat(parent, base, 0o755); err != nil {
		unix.Close(parent)
		return nil, fmt.Errorf("make it: %w", err)
	}
	fd, err := openIn(parent, base)
	if err != nil {
		unix.Close(parent)
		return nil, err
	}
	return &Dir{path: path, parent: parent, fd: fd, created: true}, nil
}

func open(path string) (*Dir, error) {
	parent, base, err := walk(path)
	if err != nil {
		return nil, err
	}
	fd, err := openIn(parent, base)
	if err != nil {
		unix.Close(parent)
		if errors.Is(err, unix.ENOENT) {
			err = errNone
		}
		return nil, explain(path, err)
	}
	return &Dir{path: path, parent: parent, fd: fd}, nil
}

// walk opens the directory above a clean, absolute path. It and all above it are checked.
func walk(path string) (parent int, base string, err error) {
	if path == "/" {
		return -1, "", errors.New("nothing can be mounted over the root directory")
	}
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", err
	}
	names := strings.Split(path[1:], "/")
	at := "/"
	for i := 0; ; i++ {
		if err := mustBeOurs(fd, at); err != nil {
			unix.Close(fd)
			return -1, "", err
		}
		if i == len(names)-1 {
			return fd, names[i], nil
		}
		at = filepath.Join(at, names[i])
		next, err := openIn(fd, names[i])
		unix.Close(fd)
		if err != nil {
			return -1, "", explain(at, err)
		}
		fd = next
	}
}

// openIn opens the directory name in dir, which must be no link.
func openIn(dir int, name string) (int, error) {
	return unix.Openat2(dir, name, &unix.OpenHow{
		// Not O_NOFOLLOW: a link would be ENOTDIR, where the rule against links says ELOOP.
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
}

func explain(path string, err error) error {
	switch {
	case errors.Is(err, unix.ELOOP):
		hint := ""
		if to, err := filepath.EvalSymlinks(path); err == nil {
			hint = "\n  use the directory it leads to: " + to
		}
		return fmt.Errorf("%s is a symbolic link, which is not followed%s", path, hint)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%s does not exist: %w\n  make it first (only the last directory is made)", path, os.ErrNotExist)
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%s is not a directory", path)
	}
	return err
}

// mustBeOurs refuses a directory in which others could replace a name.
func mustBeOurs(fd int, path string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	const hint = "\n  mount below a directory that only root may write, such as /mnt or /run"
	if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, who could lead the mount elsewhere%s", path, st.Uid, hint)
	}
	if st.Mode&0o022 != 0 {
		return fmt.Errorf("%s may be written by others (mode %#o), who could lead the mount elsewhere%s", path, st.Mode&0o7777, hint)
	}
	return nil
}

func (d *Dir) mustBeFree() error {
	id, mounted, err := identify(d.fd, "")
	if err != nil {
		return err
	}
	if mounted {
		return fmt.Errorf("something is mounted there already (mount %d)", id)
	}
	fd, err := unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), d.path)
	defer f.Close()
	names, err := f.Readdirnames(1)
	if err != nil && err != io.EOF {
		return err
	}
	if len(names) > 0 {
		return fmt.Errorf("the directory is not empty (it has %q)\n  its files would be hidden: use an empty directory or a new name", names[0])
	}
	return nil
}

// Attach puts a mount on the directory, which is walked and checked once more: since Prepare minutes may have passed.
func (d *Dir) Attach(m *Mount) error {
	now, err := open(d.path)
	if err == nil {
		defer now.Close()
		err = now.mustBeFree()
	}
	if err == nil {
		err = unix.MoveMount(m.fd, "", now.fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	}
	if err != nil {
		return fmt.Errorf("mount on %s: %w", d.path, err)
	}
	return nil
}

// Abandon closes the directory and removes it if Prepare made it.
func (d *Dir) Abandon() {
	if d.created {
		// It fails when somebody has put something there, which then stays.
		_ = unix.Unlinkat(d.parent, filepath.Base(d.path), unix.AT_REMOVEDIR)
	}
	d.Close()
}

// Close lets go of the directory.
func (d *Dir) Close() {
	unix.Close(d.fd)
	unix.Close(d.parent)
}
