package watch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/fanotify"
)

// selfTest finds out whether reads through a new mount at root raise events, without the network: a page of a file is read while every request
// for missing data is refused: it is the first mount, so nobody else can ask. If no event comes the kernel has read holes as zeros, and would go on doing so.
func (e *watched) selfTest(g *fanotify.Group, root string) error {
	path, err := someFile(root)
	if err != nil || path == "" {
		return err // a layer without data
	}
	before := g.Stats().Events
	e.testing.Store(true)
	err = readPage(path)
	e.testing.Store(false)
	events := g.Stats().Events - before
	switch {
	case events == 0 && err == nil:
		return errors.New("the kernel read missing data as zeros instead of asking for them")
	case events == 0 && errors.Is(err, unix.EIO):
		return errors.New("the kernel cannot read the data blob, and does not ask for it")
	case err != nil && !errors.Is(err, unix.EIO):
		return fmt.Errorf("self-test: %w", err)
	}
	return nil
}

// errTest is why data are refused.
var errTest = errors.New("refused by a self-test")

// errFound ends a walk.
var errFound = errors.New("found")

// someFile returns a file below root that is not empty, "" if there is none.
func someFile(root string) (found string, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.Type().IsRegular() {
			return nil
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		if fi.Size() > 0 {
			found = path
			return errFound
		}
		return nil
	})
	if errors.Is(err, errFound) {
		err = nil
	}
	return found, err
}

// readPage reads the first page of a file, and no more: the kernel would read ahead otherwise.
func readPage(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return err
	}
	_, err = f.Read(make([]byte, 4096))
	return err
}
