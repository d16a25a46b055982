package mountapi

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/tinyimage"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

func open(t *testing.T, fstype string) *Context {
	t.Helper()
	testenv.Need(t, testenv.Root)
	c, err := Open(fstype)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestOpenUnknown(t *testing.T) {
	testenv.Need(t, testenv.Root)
	if _, err := Open("nosuchfs"); !errors.Is(err, unix.ENODEV) {
		t.Errorf("got %v, want ENODEV", err)
	}
}

func TestErrorsCarryTheKernelsWords(t *testing.T) {
	c := open(t, "tmpfs")
	err := c.Set("nosuch", "1")
	if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "Unknown parameter 'nosuch'") || !strings.Contains(err.Error(), "set nosuch=1") {
		t.Errorf("got %v", err)
	}
	// The line was told once; it is not the next call's.
	if err := c.Set("size", "4k"); err != nil {
		t.Error(err)
	}
}

// An error line that comes with success, as kernels write it for options they were built without. Userspace cannot make the
// kernel write one at will, so this plays the log by a pipe.
func TestIgnoredOptionIsAnError(t *testing.T) {
	for line, want := range map[string]error{
		"e erofs: fsid option not supported": ErrIgnored,
		"w something odd":                    nil,
		"i something nice":                   nil,
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteString(line + "\n"); err != nil {
			t.Fatal(err)
		}
		w.Close()
		c := &Context{fstype: "erofs", fd: int(r.Fd())}
		if err := c.explain("set fsid=x", nil); !errors.Is(err, want) {
			t.Errorf("%q: got %v, want %v", line, err, want)
		}
		r.Close()
	}
}

func TestMountIsNowhereUntilAttached(t *testing.T) {
	c := open(t, "tmpfs")
	if err := c.Create(); err != nil {
		t.Fatal(err)
	}
	m, err := c.Mount(0)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	f, err := m.Open("file", unix.O_CREAT|unix.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	target := t.TempDir()
	if _, err := os.Stat(filepath.Join(target, "file")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("before Attach: %v", err)
	}
	if err := m.Attach(target); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(target, unix.MNT_DETACH)
	if _, err := os.Stat(filepath.Join(target, "file")); err != nil {
		t.Error(err)
	}
}

func TestClone(t *testing.T) {
	testenv.Need(t, testenv.Root)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := Clone(dir, ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.Open("file", unix.O_RDWR); !errors.Is(err, unix.EROFS) {
		t.Errorf("open for writing: %v", err)
	}
	st, err := m.Statfs()
	if want := int64(unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV); err != nil || st.Flags&want != want {
		t.Errorf("flags %#x, %v", st.Flags, err)
	}
	if _, err := Clone(filepath.Join(dir, "missing"), ReadOnly); !errors.Is(err, unix.ENOENT) {
		t.Errorf("clone of a missing directory: %v", err)
	}
}

func TestEROFSRefusesOtherDeviceCounts(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	meta, data, err := tinyimage.Build(make([]byte, 5000))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, b := range map[string][]byte{"meta": meta, "data": data} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d := filepath.Join(dir, "data")
	if m, err := EROFS(filepath.Join(dir, "meta"), d, d); err == nil {
		m.Close()
		t.Error("mounted with two devices instead of one")
	} else {
		t.Log(err)
	}
	// A name that does not fit an option must not become a mount without the device.
	if m, err := EROFS(filepath.Join(dir, "meta"), "/"+strings.Repeat("x", 300)); !errors.Is(err, unix.EINVAL) {
		t.Errorf("mount with an overlong device name: %v, %v", m, err)
	}
}

// A filesystem that does not know the option answers as kernels do whose EROFS does not.
func TestNoDirect(t *testing.T) {
	if err := setDirect(open(t, "tmpfs")); !errors.Is(err, ErrNoDirect) || !errors.Is(err, unix.EINVAL) {
		t.Errorf("got %v, want ErrNoDirect", err)
	}
}

func TestNoFscache(t *testing.T) {
	if err := setFscache(open(t, "tmpfs"), "domain", "id"); !errors.Is(err, ErrNoFscache) || !errors.Is(err, unix.EINVAL) {
		t.Errorf("got %v, want ErrNoFscache", err)
	}
}
