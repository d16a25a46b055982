package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/file"
)

// variant is a way to mount.
type variant struct {
	name    string
	options file.Options
	// readAheadKiB is set on the mounted file system, unless it is 0.
	readAheadKiB int
	// forget drops the page cache of the data files every second, and once more before the caches are counted.
	forget bool
}

var variants = []variant{
	{name: "buffered", options: file.Options{Direct: file.Never}},
	{name: "direct", options: file.Options{Direct: file.Always}},
	{name: "whencold", options: file.Options{Direct: file.WhenCold}},
	{name: "direct+ra256", options: file.Options{Direct: file.Always}, readAheadKiB: 256},
	{name: "direct+ra512", options: file.Options{Direct: file.Always}, readAheadKiB: 512},
	{name: "buffered+forget", options: file.Options{Direct: file.Never}, forget: true},
	{name: "loop", options: file.Options{Mode: file.Loop, Direct: file.Never}},
	{name: "loop+direct", options: file.Options{Mode: file.Loop, Direct: file.Always}},
}

// mounted are the layers of one measurement.
type mounted struct {
	images []fsbackend.Image
	points []string
	// overlay is a directory to mount an overlay on.
	overlay string
	// stop ends what runs beside the measurement, settle waits until it has done its work.
	stop, settle func()
}

func (v variant) mount(ctx context.Context, dir string, layers map[string]fsbackend.Image, names []string) (_ *mounted, err error) {
	m := &mounted{overlay: filepath.Join(dir, "overlay"), stop: func() {}, settle: func() {}}
	if err := os.MkdirAll(m.overlay, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.unmount())
		}
	}()
	for _, name := range names {
		if err := v.mountOne(ctx, m, layers[name], filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	if v.forget {
		err = m.forget()
	}
	return m, err
}

func (v variant) mountOne(ctx context.Context, m *mounted, img fsbackend.Image, point string) error {
	if err := os.MkdirAll(point, 0o700); err != nil {
		return err
	}
	before, err := readAheads()
	if err != nil {
		return err
	}
	if err := file.New(v.options).Mount(ctx, img, point); err != nil {
		return err
	}
	m.images, m.points = append(m.images, img), append(m.points, point)
	if v.readAheadKiB == 0 {
		return nil
	}
	return setReadAhead(before, v.readAheadKiB)
}

func (m *mounted) unmount() error {
	m.stop()
	for _, p := range m.points {
		if err := waitUnmount(p); err != nil {
			return err
		}
	}
	return nil
}

// waitUnmount unmounts when the last user has gone. A detached file system would live on below the next measurement.
func waitUnmount(point string) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
}

// readAheads are the kernel's settings for the file systems that have no block device.
func readAheads() ([]string, error) { return filepath.Glob("/sys/class/bdi/erofs-*/read_ahead_kb") }

// setReadAhead changes the setting that was not there before. Its name says nothing about the mount it belongs to.
func setReadAhead(before []string, kib int) error {
	after, err := readAheads()
	if err != nil {
		return err
	}
	old := map[string]bool{}
	for _, p := range before {
		old[p] = true
	}
	n := 0
	for _, p := range after {
		if !old[p] {
			n++
			if err := os.WriteFile(p, fmt.Appendf(nil, "%d", kib), 0); err != nil {
				return err
			}
		}
	}
	if n != 1 {
		return fmt.Errorf("%d new settings of read-ahead appeared with one mount", n)
	}
	return nil
}

// forget starts dropping the page cache of the data files.
func (m *mounted) forget() error {
	var files []*os.File
	for _, i := range m.images {
		f, err := os.Open(i.Data)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	m.settle = func() {
		for _, f := range files {
			_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		}
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for tick := time.Tick(time.Second); ; {
			select {
			case <-done:
				return
			case <-tick:
				m.settle()
			}
		}
	})
	m.stop = func() {
		close(done)
		wg.Wait()
		for _, f := range files {
			f.Close()
		}
	}
	return nil
}
