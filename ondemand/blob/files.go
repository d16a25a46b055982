package blob

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// directory is what the package does with the directory of a blob. Tests put one in its place whose writes can be lost.
type directory interface {
	// create makes a file, which must not exist.
	create(name string) (file, error)
	open(name string, write bool) (file, error)
	// sync makes names durable.
	sync() error
}

// file is what the package does with a file.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	size() (int64, error)
	truncate(size int64) error
	// datasync makes everything durable that was written, and what is needed to read it again.
	datasync() error
}

// osDirectory is a directory by its path.
type osDirectory string

func (d osDirectory) path(name string) string { return filepath.Join(string(d), name) }

func (d osDirectory) create(name string) (file, error) {
	return openOS(d.path(name), os.O_RDWR|os.O_CREATE|os.O_EXCL)
}

func (d osDirectory) open(name string, write bool) (file, error) {
	if write {
		return openOS(d.path(name), os.O_RDWR)
	}
	return openOS(d.path(name), os.O_RDONLY)
}

func openOS(path string, flags int) (file, error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (d osDirectory) sync() error {
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

type osFile struct{ *os.File }

func (f osFile) size() (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

func (f osFile) truncate(size int64) error { return f.Truncate(size) }

func (f osFile) datasync() error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return &fs.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
	}
}
