package source

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// directory is a tree on disk. Symbolic links that lead out of it are errors.
type directory struct{ root *os.Root }

func openDirectory(path string) (*directory, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return &directory{root}, nil
}

func (d *directory) open(name string) (file, error) {
	// Without O_NONBLOCK a named pipe would wait for its writer.
	f, err := d.root.OpenFile(filepath.FromSlash(name), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return file{}, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("it is no regular file but %s", fi.Mode().Type())}
	}
	if err != nil {
		f.Close()
		return file{}, err
	}
	return file{f, fi.Size()}, nil
}

func (d *directory) Close() error { return d.root.Close() }
