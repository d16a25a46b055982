package watch

import (
	"errors"
	"fmt"
	"os"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
)

// ErrNotOpen says that an instance is not open: it is complete, or not known, or cannot be served.
var ErrNotOpen = errors.New("layer instance is not open")

// opened returns an instance that is open and in the store.
func (w *Watcher) opened(name string) (*watched, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e := w.current[name]; e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("%s: %w", name, ErrNotOpen)
}

// Reader returns what reads the data of an instance that are present, beside those who fill it, and without asking anybody. The caller closes it.
func (w *Watcher) Reader(name string) (*blob.Reader, error) {
	e, err := w.opened(name)
	if err != nil {
		return nil, err
	}
	r, err := e.blob.Reader()
	return r, notOpen(name, err)
}

// Imported says what became of an extent.
type Imported int

const (
	// Written: it was absent.
	Written Imported = iota + 1
	// Present: it was here already. Its bytes were not looked at.
	Present
	// Wrong: the instance has no such extent, or other bytes belong there.
	Wrong
)

// Import puts an extent into an instance, as if it had been fetched: who waits for it reads on. read returns its bytes, which may be
// anything; it is called only if they are needed, and the extent has as many. An error says that nobody knows whether they were right, or that
// they could not be written.
func (w *Watcher) Import(name string, offset int64, length uint32, read func() ([]byte, error)) (Imported, error) {
	e, err := w.opened(name)
	if err != nil {
		return 0, err
	}
	i, err := e.blob.At(offset, length)
	switch {
	case err != nil:
		return 0, notOpen(name, err)
	case i < 0:
		return Wrong, nil
	case e.blob.Present(i):
		return Present, nil
	}
	bytes, err := read()
	if err != nil {
		return 0, err
	}
	switch err := e.fill.Import(i, bytes); {
	case errors.Is(err, ondemand.ErrWrongBytes):
		return Wrong, nil
	case err != nil:
		return 0, notOpen(name, err)
	}
	return Written, nil
}

// Flush puts what was imported into an instance on stable storage. One that is not open any more has been.
func (w *Watcher) Flush(name string) error {
	e, err := w.opened(name)
	if err != nil {
		return nil
	}
	return e.blob.Flush()
}

// notOpen makes ErrNotOpen of the errors of an instance that was just closed.
func notOpen(name string, err error) error {
	if errors.Is(err, os.ErrClosed) || errors.Is(err, ondemand.ErrClosed) {
		return fmt.Errorf("%s: %w: %w", name, ErrNotOpen, err)
	}
	return err
}
