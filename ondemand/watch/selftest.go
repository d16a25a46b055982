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
	path, off, err := someData(root)
	if err != nil || path == "" {
		return err // a layer without data
	}
	before := g.Stats().Events
	e.testing.Store(true)
	err = readPage(path, off)
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

// errFound ends a walk.
var errFound = errors.New("found")

// someData returns a file below root and where in it data are that are no hole: reads of a hole ask nobody. "" if there are none.
func someData(root string) (found string, off int64, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		off, err = firstData(path)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err == nil {
			found, err = path, errFound
		}
		return err
	})
	if errors.Is(err, errFound) {
		err = nil
	}
	return found, off, err
}

// firstData is where the data of a file begin; ENXIO says that there are none.
func firstData(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
}

// readPage reads one page of a file, and no more: the kernel would read ahead otherwise.
func readPage(path string, off int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return err
	}
	_, err = f.ReadAt(make([]byte, 1), off)
	return err
}
