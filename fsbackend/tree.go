package fsbackend

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountapi"
)

// OpenOverlay opens the root directory of a read-only overlay of at least two directories, top first, with options in the form key=value.
// The overlay is mounted nowhere, and goes when the directory and what was opened below it are closed. Needs Linux 6.7.
func OpenOverlay(lowers, options []string) (*os.File, error) {
	f, err := openOverlay(lowers, options)
	if err != nil {
		return nil, fmt.Errorf("overlay of %d directories: %w", len(lowers), err)
	}
	return f, nil
}

func openOverlay(lowers, options []string) (*os.File, error) {
	c, err := mountapi.Open("overlay")
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		if err := c.Set(key, value); err != nil {
			return nil, err
		}
	}
	// One by one: the value of an option is at most 255 bytes long, and its colons and commas mean nothing here.
	for _, dir := range lowers {
		if err := c.Set("lowerdir+", dir); err != nil {
			return nil, err
		}
	}
	if err := c.SetFlag("ro"); err != nil {
		return nil, err
	}
	if err := c.Create(); err != nil {
		return nil, err
	}
	m, err := c.Mount(mountapi.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	return m.Open(".", unix.O_RDONLY|unix.O_DIRECTORY)
}
