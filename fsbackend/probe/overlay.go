package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/loop"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountapi"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/tinyimage"
)

// HaveOverlay reports whether overlay mounts work with EROFS as the lower layer and an upper directory in dir, with the given
// options of the form key=value. Ask for one option at a time to learn which of them this kernel knows.
func HaveOverlay(dir string, options ...string) error {
	what := strings.Join(append([]string{"overlay on EROFS"}, options...), " ")
	const needs = "needs CONFIG_OVERLAY_FS, and a directory on a filesystem such as ext4, xfs or btrfs"
	if err := HaveEROFS(); err != nil {
		return err
	}
	s, err := newScratch(dir)
	if err != nil {
		return answer(what, needs, err)
	}
	defer s.close()
	return answer(what, needs, withTrialFiles(s, func(meta, data *os.File) error {
		return tryOverlay(s, meta, data, options)
	}))
}

func tryOverlay(s *scratch, meta, data *os.File, options []string) error {
	for _, name := range []string{lowerName, "upper", "work"} {
		if err := os.Mkdir(s.join(name), 0o700); err != nil {
			return err
		}
	}
	lower, err := trialMount(meta, data)
	if err != nil {
		return fmt.Errorf("lower layer: %w", err)
	}
	defer lower.Close()
	// Only recent kernels take a layer that is attached nowhere.
	if err := lower.Attach(s.join(lowerName)); err != nil {
		return err
	}
	o, err := overlayMount(s, options)
	if err != nil {
		return err
	}
	defer o.Close()
	if err := readTrialFile(o); err != nil {
		return err
	}
	return copyUp(o)
}

// trialMount mounts the trial image in whatever way this kernel has.
func trialMount(meta, data *os.File) (*mountapi.Mount, error) {
	m, err := mountapi.EROFS(procPath(meta), procPath(data))
	if !errors.Is(err, unix.ENOTBLK) {
		return m, err
	}
	devices, err := loop.Attach(context.Background(), meta, data)
	if err != nil {
		return nil, err
	}
	defer devices.Close()
	return mountapi.EROFS(devices[0].Path, devices[1].Path)
}

func overlayMount(s *scratch, options []string) (*mountapi.Mount, error) {
	c, err := mountapi.Open("overlay")
	if err != nil {
		return nil, err
	}
	defer c.Close()
	layers := []string{"lowerdir=" + s.join(lowerName), "upperdir=" + s.join("upper"), "workdir=" + s.join("work")}
	for _, o := range append(layers, options...) {
		key, value, _ := strings.Cut(o, "=")
		if err := c.Set(key, value); err != nil {
			return nil, err
		}
	}
	// Otherwise the end of the mount waits until the whole filesystem below is synced.
	if err := c.SetFlag("volatile"); err != nil {
		return nil, err
	}
	if err := c.Create(); err != nil {
		return nil, err
	}
	return c.Mount(0)
}

// copyUp changes the trial file, which makes overlayfs copy it into the upper directory.
func copyUp(o *mountapi.Mount) error {
	f, err := o.Open(tinyimage.FileName, unix.O_WRONLY)
	if err != nil {
		return fmt.Errorf("copy up: %w", err)
	}
	defer f.Close()
	_, err = f.WriteString("x")
	return err
}
