package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Change does to a mounted stack what programs in a container do: it makes, copies up, renames, hides and removes. It returns one line
// for each change, with the error number if there was one. The paths are those of tartest.Edge; elsewhere they are errors, or new files.
func Change(root string) []string {
	var log []string
	for _, c := range changes {
		outcome := "done"
		if err := c.do(func(name string) string { return filepath.Join(root, name) }); err != nil {
			outcome = "other error"
			if number := syscall.Errno(0); errors.As(err, &number) {
				outcome = unix.ErrnoName(number)
			}
		}
		log = append(log, fmt.Sprintf("%s: %s", c.what, outcome))
	}
	return log
}

// changes are done in this order. What they do to the times of files is not compared.
var changes = []struct {
	what string
	do   func(at func(name string) string) error
}{
	{"append to a file with a tail", func(at func(string) string) error { return appendTo(at("sizes/4097")) }},
	{"append to an inline file", func(at func(string) string) error { return appendTo(at("sizes/511")) }},
	{"append to one of several hard links", func(at func(string) string) error { return appendTo(at("kinds/link")) }},
	{"shorten a file", func(at func(string) string) error { return os.Truncate(at("sizes/8193"), 5) }},
	{"read-modify-write in the middle", func(at func(string) string) error { return writeAt(at("sizes/1048577"), 500_000) }},
	{"change the mode", func(at func(string) string) error { return os.Chmod(at("modes/file-4755"), 0o700) }},
	{"change the owner", func(at func(string) string) error { return os.Lchown(at("acls/file"), 1, 2) }},
	{"change the owner of a symbolic link", func(at func(string) string) error { return os.Lchown(at("xattrs/symlink"), 1, 2) }},
	{"change a directory with attributes", func(at func(string) string) error { return os.Chmod(at("xattrs/dir-05"), 0o700) }},
	{"change a directory with a default ACL", func(at func(string) string) error { return os.Lchown(at("acls/dir"), 3, 4) }},
	{"make a file in it", func(at func(string) string) error { return os.WriteFile(at("acls/dir/new"), nil, 0o666) }},
	{"add an attribute", func(at func(string) string) error {
		return unix.Lsetxattr(at("xattrs/binary"), "user.more", []byte("x"), 0)
	}},
	{"remove an attribute", func(at func(string) string) error { return unix.Lremovexattr(at("xattrs/empty"), "user.empty") }},
	{"set a time", func(at func(string) string) error { return os.Chtimes(at("times/2106"), time.Time{}, time.Unix(7, 0)) }},
	{"remove a file", func(at func(string) string) error { return os.Remove(at("sizes/65536")) }},
	{"remove one of several hard links", func(at func(string) string) error { return os.Remove(at("kinds/link-dot")) }},
	{"remove a directory and make it anew", func(at func(string) string) error {
		return errors.Join(os.RemoveAll(at("full/4084")), os.Mkdir(at("full/4084"), 0o755), os.WriteFile(at("full/4084/new"), []byte("new"), 0o644))
	}},
	{"rename a file", func(at func(string) string) error { return os.Rename(at("sizes/1"), at("sizes/moved")) }},
	{"rename over a file", func(at func(string) string) error { return os.Rename(at("sizes/512"), at("sizes/513")) }},
	{"rename a directory of an image", func(at func(string) string) error { return os.Rename(at("full/4090"), at("full/moved")) }},
	{"make a hard link", func(at func(string) string) error { return os.Link(at("sizes/4095"), at("sizes/linked")) }},
	{"make a directory tree", func(at func(string) string) error { return os.MkdirAll(at("made/by/the/container"), 0o755) }},
	{"make a device", func(at func(string) string) error {
		return unix.Mknod(at("device"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))
	}},
	{"change the root", func(at func(string) string) error { return os.Chmod(at("."), 0o711) }},
}

func appendTo(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("appended")
	return errors.Join(err, f.Close())
}

func writeAt(name string, offset int64) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte("changed"), offset)
	return errors.Join(err, f.Close())
}
