package backendtest

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
)

// damages are ways in which the files of an image go bad. Where errno is set, the kernel or the filesystem says it.
var damages = []struct {
	name  string
	do    func(fsbackend.Image) error
	errno error
}{
	{"meta missing", func(i fsbackend.Image) error { return os.Remove(i.Meta) }, unix.ENOENT},
	{"data missing", func(i fsbackend.Image) error { return os.Remove(i.Data) }, unix.ENOENT},
	{"meta empty", func(i fsbackend.Image) error { return os.Truncate(i.Meta, 0) }, unix.Errno(0)},
	{"meta cut in the superblock", func(i fsbackend.Image) error { return os.Truncate(i.Meta, 1100) }, unix.Errno(0)},
	{"meta without magic", func(i fsbackend.Image) error { return flip(i.Meta, 1024) }, unix.EINVAL},
	{"meta with a wrong checksum", func(i fsbackend.Image) error { return flip(i.Meta, 1024+200) }, unix.EBADMSG},
	{"meta a directory", func(i fsbackend.Image) error { return asDirectory(i.Meta) }, nil},
	{"data a directory", func(i fsbackend.Image) error { return asDirectory(i.Data) }, nil},
	{"data empty", func(i fsbackend.Image) error { return os.Truncate(i.Data, 0) }, nil},
	{"data cut", func(i fsbackend.Image) error { return os.Truncate(i.Data, 4096) }, nil},
}

func testDamaged(t *testing.T, s *stage) {
	for n, d := range damages {
		p := s.prop(t, n)
		if err := d.do(p.image); err != nil {
			t.Fatal(err)
		}
		err := s.backend.Mount(t.Context(), p.image, p.target)
		switch {
		case err == nil:
			t.Errorf("%s: Mount succeeded", d.name)
		case !strings.Contains(err.Error(), p.image.Meta) || !strings.Contains(err.Error(), p.target):
			t.Errorf("%s: error names not the image and the target: %v", d.name, err)
		case d.errno == unix.Errno(0):
			if e := unix.Errno(0); !errors.As(err, &e) {
				t.Errorf("%s: error is not from the kernel: %v", d.name, err)
			}
		case d.errno != nil && !errors.Is(err, d.errno):
			t.Errorf("%s: error does not wrap %q: %v", d.name, d.errno, err)
		}
		t.Logf("%s: %v", d.name, err)
		if n := len(mountsAt(t, p.target)); n != 0 {
			t.Errorf("%s: %d mounts on the target after the error", d.name, n)
		}
	}
	// Here, and not only at the end: nothing that failed may hold a loop device.
	waitForLoops(t, s.dir)
}

// testFailureThenMount repairs an image and mounts it: an error is remembered nowhere.
func testFailureThenMount(t *testing.T, s *stage) {
	p := s.prop(t, 1)
	if err := os.Rename(p.image.Data, p.image.Data+".away"); err != nil {
		t.Fatal(err)
	}
	if err := s.backend.Mount(t.Context(), p.image, p.target); err == nil {
		t.Error("Mount without the data blob succeeded")
	}
	if err := os.Rename(p.image.Data+".away", p.image.Data); err != nil {
		t.Fatal(err)
	}
	s.mount(t, p)
	p.mustRead(t)
	s.unmount(t, p)
}

// flip inverts one byte of a file.
func flip(path string, offset int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, offset); err != nil {
		return err
	}
	b[0] ^= 0xff
	_, err = f.WriteAt(b, offset)
	return err
}

func asDirectory(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.Mkdir(path, 0o700)
}
