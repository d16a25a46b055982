package probe

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/loop"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountapi"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/tinyimage"
)

// trialContent is the content of the one file of the trial image: a block on the data device and a tail in the metadata.
var trialContent = bytes.Repeat([]byte("erofs-snapshotter trial image. "), 160)

// HaveFileBacked reports whether the kernel mounts EROFS images that are files in dir, without block devices.
func HaveFileBacked(dir string) error {
	const needs = "needs Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE, and a directory on a disk filesystem such as ext4, xfs or btrfs"
	return answer("file-backed EROFS", needs, onTrialFiles(dir, func(meta, data *os.File) error {
		return tryImage(procPath(meta), procPath(data))
	}))
}

// HaveLoop reports whether the kernel mounts EROFS images that lie in dir through loop devices.
func HaveLoop(dir string) error {
	return answer("EROFS over loop devices", "needs CONFIG_BLK_DEV_LOOP", onTrialFiles(dir, tryLoop))
}

func tryLoop(meta, data *os.File) error {
	// Attaching is a few system calls: there is nothing for a context to bound.
	devices, err := loop.Attach(context.Background(), meta, data)
	if err != nil {
		return err
	}
	defer devices.Close()
	return tryImage(devices[0].Path, devices[1].Path)
}

// onTrialFiles runs try with the trial image as files in dir.
func onTrialFiles(dir string, try func(meta, data *os.File) error) error {
	if err := HaveEROFS(); err != nil {
		return err
	}
	s, err := newScratch(dir)
	if err != nil {
		return err
	}
	defer s.close()
	return withTrialFiles(s, try)
}

func withTrialFiles(s *scratch, try func(meta, data *os.File) error) error {
	m, d, err := tinyimage.Build(trialContent)
	if err != nil {
		return err
	}
	meta, err := s.file("meta", m)
	if err != nil {
		return err
	}
	defer meta.Close()
	data, err := s.file("data", d)
	if err != nil {
		return err
	}
	defer data.Close()
	return try(meta, data)
}

// tryImage mounts the trial image, without attaching it anywhere, and reads it; then once more without its device.
func tryImage(meta, data string) error {
	if err := readTrial(meta, data); err != nil {
		return err
	}
	// By now the first superblock is gone. Two mounts of one block device would share it, with its data device.
	m, err := mountapi.EROFS(meta)
	if err != nil {
		return nil // kernels before 6.4 count the devices
	}
	defer m.Close()
	if readTrialFile(m) == nil {
		return fmt.Errorf("%w: an image without its data device can be read", ErrNotSupported)
	}
	return nil
}

func readTrial(meta, data string) error {
	m, err := mountapi.EROFS(meta, data)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := readTrialFile(m); err != nil {
		return err
	}
	return readTrialXattr(m)
}

func readTrialFile(m *mountapi.Mount) error {
	f, err := m.Open(tinyimage.FileName, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, trialContent) {
		return fmt.Errorf("%w: a file read back with other bytes than were written", ErrNotSupported)
	}
	return nil
}

// readTrialXattr makes sure that marks of overlayfs are seen: without them deleted files would come back.
func readTrialXattr(m *mountapi.Mount) error {
	root, err := m.Open(".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer root.Close()
	value := make([]byte, 16)
	n, err := unix.Fgetxattr(int(root.Fd()), tinyimage.XattrName, value)
	if err != nil {
		return fmt.Errorf("extended attributes (needs CONFIG_EROFS_FS_XATTR): %w", err)
	}
	if string(value[:n]) != tinyimage.XattrValue {
		return fmt.Errorf("%w: an extended attribute read back as %q", ErrNotSupported, value[:n])
	}
	return nil
}

// procPath names an open file, however long its path is.
func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
