package gnutar

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const opaqueAttribute = "trusted.overlay.opaque"

// OverlayForm changes the tree that Extract made of a tar so that it is what overlayfs expects in a lower directory:
//
//	.wh.x beside no x         a 0:0 character device x of mode 0, owner 0:0 and time 0; all of them are links to one
//	.wh.x beside a directory  that directory is opaque
//	.wh.x beside anything     nothing, x stays
//	.wh..wh..opq              the directory is opaque
//	.wh..wh.*                 gone, with everything below
//	whiteouts in and below an opaque directory       gone: there is nothing to hide
//	a directory in the place of a non-directory      opaque
//	0:0 character devices, {trusted,user}.overlay.*  gone
//	directories without an entry of their own        mode 0755, owner 0:0, time 0
//	directories that only dropped entries lie in     gone
//
// The times of directories that are changed stay as they were.
func OverlayForm(tarFile, dir string) error {
	history, err := readHistory(tarFile)
	if err != nil {
		return fmt.Errorf("read entries of %s: %w", tarFile, err)
	}
	root, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	c := conversion{history: history}
	defer c.close()
	if err := c.directory(root, ".", false, true); err != nil {
		return fmt.Errorf("put %s into overlayfs form: %w", dir, err)
	}
	return nil
}

type conversion struct {
	history  *history
	whiteout *os.File // the first one, as O_PATH; further ones are links to it
}

func (c *conversion) close() {
	if c.whiteout != nil {
		c.whiteout.Close()
	}
}

// directory converts an open directory and everything below it. below says whether lower layers show through here.
func (c *conversion) directory(dir *os.File, rel string, opaque, below bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return err
	}
	if err := dropOverlayAttributes(entryPath(dir, ".")); err != nil {
		return fmt.Errorf("directory %q: %w", rel, err)
	}
	marks, names, err := takeMarks(dir)
	if err != nil {
		return fmt.Errorf("directory %q: %w", rel, err)
	}
	opaque = opaque || marks.opaque || c.history.opaque[rel]
	below = below && !opaque
	for _, name := range names {
		if err := c.entry(dir, name, path.Join(rel, name), slices.Contains(marks.hidden, name), below); err != nil {
			return err
		}
	}
	for _, name := range marks.hidden {
		if below && !slices.Contains(names, name) {
			if err := c.putWhiteout(dir, name); err != nil {
				return fmt.Errorf("whiteout of %q: %w", path.Join(rel, name), err)
			}
		}
	}
	return c.attributes(dir, rel, opaque, st)
}

// marks is what the whiteout files of a directory say.
type marks struct {
	opaque bool
	hidden []string
}

// takeMarks removes everything that is not content, and returns the names that are left.
func takeMarks(dir *os.File) (m marks, names []string, err error) {
	all, err := dir.Readdirnames(-1)
	if err != nil {
		return m, nil, err
	}
	for _, name := range all {
		at := entryPath(dir, name)
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			return m, nil, err
		}
		switch hidden, isMark := strings.CutPrefix(name, ".wh."); {
		case isMark && hidden == ".wh..opq":
			m.opaque = true
		case isMark && strings.HasPrefix(hidden, ".wh."):
		case isMark:
			m.hidden = append(m.hidden, hidden)
		case st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0:
		default:
			names = append(names, name)
			continue
		}
		if err := os.RemoveAll(at); err != nil {
			return m, nil, err
		}
	}
	return m, names, nil
}

func (c *conversion) entry(dir *os.File, name, rel string, hidden, below bool) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		if err := dropOverlayAttributes(entryPath(dir, name)); err != nil {
			return fmt.Errorf("%q: %w", rel, err)
		}
		return nil
	case err != nil:
		return fmt.Errorf("open directory %q: %w", rel, err)
	}
	sub := os.NewFile(uintptr(fd), rel)
	defer sub.Close()
	if !c.history.directory[rel] {
		return os.RemoveAll(entryPath(dir, name))
	}
	return c.directory(sub, rel, hidden, below)
}

func (c *conversion) putWhiteout(dir *os.File, name string) error {
	if c.whiteout != nil {
		return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", c.whiteout.Fd()), int(dir.Fd()), name, unix.AT_SYMLINK_FOLLOW)
	}
	at := entryPath(dir, name)
	if err := unix.Mknod(at, unix.S_IFCHR, 0); err != nil {
		return err
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, at, make([]unix.Timespec, 2), 0); err != nil {
		return err
	}
	fd, err := unix.Open(at, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	c.whiteout = os.NewFile(uintptr(fd), name)
	return nil
}

// attributes gives a directory what it shall have in the end. st is what it had before anything was changed.
func (c *conversion) attributes(dir *os.File, rel string, opaque bool, st unix.Stat_t) error {
	at := entryPath(dir, ".")
	if c.history.implied[rel] {
		st.Mtim = unix.Timespec{}
		if err := errors.Join(unix.Fchown(int(dir.Fd()), 0, 0), unix.Fchmod(int(dir.Fd()), 0o755)); err != nil {
			return fmt.Errorf("implied directory %q: %w", rel, err)
		}
	}
	if opaque {
		if err := unix.Lsetxattr(at, opaqueAttribute, []byte("y"), 0); err != nil {
			return fmt.Errorf("opaque directory %q: %w", rel, err)
		}
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, at, []unix.Timespec{st.Mtim, st.Mtim}, 0); err != nil {
		return fmt.Errorf("time of directory %q: %w", rel, err)
	}
	return nil
}

func dropOverlayAttributes(at string) error {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(at, list)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return &fs.PathError{Op: "listxattr", Path: at, Err: err}
	}
	for name := range strings.SplitSeq(string(list[:max(n, 0)]), "\x00") {
		if !strings.HasPrefix(name, "trusted.overlay.") && !strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		if err := unix.Lremovexattr(at, name); err != nil {
			return fmt.Errorf("remove %s: %w", name, err)
		}
	}
	return nil
}

// entryPath names an entry of an open directory by a short path: that of a deep tree may be longer than PATH_MAX.
func entryPath(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}
