package file

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountapi"
)

// imageFiles are the opened files of an image.
type imageFiles struct {
	meta, data *os.File
	// dir is two levels above the meta image, and name the meta image's path from there.
	dir  *os.File
	name string
}

func openImage(img fsbackend.Image) (*imageFiles, error) {
	f := &imageFiles{}
	if err := f.open(img); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

func (f *imageFiles) open(img fsbackend.Image) (err error) {
	if f.meta, err = openRegular(img.Meta); err != nil {
		return err
	}
	if f.data, err = openRegular(img.Data); err != nil {
		return err
	}
	meta, err := filepath.Abs(img.Meta)
	if err != nil {
		return err
	}
	dir := filepath.Dir(filepath.Dir(meta))
	if f.name, err = filepath.Rel(dir, meta); err != nil {
		return err
	}
	f.dir, err = os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return err
}

func (f *imageFiles) close() {
	for _, file := range []*os.File{f.meta, f.data, f.dir} {
		if file != nil {
			file.Close()
		}
	}
}

// source names the meta image within the 255 bytes that an option may have. The last two components of its path are kept, because
// the mount table shows this name: they say which instance is mounted.
func (f *imageFiles) source() string { return fdPath(f.dir) + "/" + f.name }

// device names the data blob. Nobody is shown this name.
func (f *imageFiles) device() string { return fdPath(f.data) }

func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// check compares what the superblock says with the files. A file that was cut off mounts well, and fails when its end is read.
func (f *imageFiles) check(m *mountapi.Mount) error {
	st, err := m.Statfs()
	if err != nil {
		return err
	}
	var have uint64
	for _, file := range []*os.File{f.meta, f.data} {
		info, err := file.Stat()
		if err != nil {
			return err
		}
		have += uint64(info.Size()) / uint64(st.Bsize)
	}
	if have < st.Blocks {
		return fmt.Errorf("truncated: the image has %d blocks of %d bytes, its files have %d", st.Blocks, st.Bsize, have)
	}
	return nil
}

// openRegular opens a file for reading, and nothing but a file: opening a pipe would wait for a writer.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}
