package fsbackend

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountapi"
)

// OpenOverlay opens the root directory of a read-only overlay of at least two directories, top first, with options in the form key=value.
// The overlay is mounted nowhere, and goes when the directory and what was opened below it are closed. Before Linux 6.7 there can be about 60
// directories.
func OpenOverlay(lowers, options []string) (*os.File, error) {
	f, err := openOverlay(options, func(c *mountapi.Context) error {
		// One by one: the value of an option is at most 255 bytes long, and its colons and commas mean nothing here.
		for _, dir := range lowers {
			if err := c.Set("lowerdir+", dir); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, unix.EINVAL) { // as is what a kernel before Linux 6.7 does not know
		old, oldErr := openOverlayAtOnce(lowers, options)
		if oldErr == nil {
			return old, nil
		}
		err = fmt.Errorf("%w, and with one option for all of them %w", err, oldErr)
	}
	if err != nil {
		return nil, fmt.Errorf("overlay of %d directories: %w", len(lowers), err)
	}
	return f, nil
}

// openOverlayAtOnce names all directories in one option, as kernels before Linux 6.7 want it. The names are short, so that there is room for many:
// they are the numbers of descriptors, in the working directory of a thread of its own. That ends with its goroutine, which stays locked to it.
func openOverlayAtOnce(lowers, options []string) (f *os.File, err error) {
	names := make([]string, len(lowers))
	for i, name := range lowers {
		dir, err := os.OpenFile(name, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		names[i] = fmt.Sprint(dir.Fd())
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_FS); err != nil {
			return
		}
		if err = unix.Chdir("/proc/thread-self/fd"); err != nil {
			return
		}
		defer unix.Chdir("/") // the first thread of a process does not end
		f, err = openOverlay(options, func(c *mountapi.Context) error { return c.Set("lowerdir", strings.Join(names, ":")) })
	}()
	<-done
	return f, err
}

// openOverlay opens the root of an overlay whose directories setLowers sets.
func openOverlay(options []string, setLowers func(*mountapi.Context) error) (*os.File, error) {
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
	if err := setLowers(c); err != nil {
		return nil, err
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
