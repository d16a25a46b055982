package target

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// place makes a directory in which targets may be. Those that package testing makes are not: /tmp may be written by all.
func place(t *testing.T) string {
	t.Helper()
	testenv.Need(t, testenv.Root)
	dir, err := os.MkdirTemp("/run", "erofs-snapshotter-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// clone makes a mount of a directory with one file.
func clone(t *testing.T, attr Attr) *Mount {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := Clone(dir, attr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

func TestMountAndUnmount(t *testing.T) {
	path := filepath.Join(place(t), "new")
	d, err := Prepare(path)
	if err != nil {
		t.Fatal(err)
	}
	m := clone(t, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV)
	id, err := m.ID()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Attach(m); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(path, unix.MNT_DETACH)
	d.Close()
	m.Close()
	if got, ok, err := Mounted(path); err != nil || !ok || got != id {
		t.Errorf("mounted: %d, %v, %v, want the number it had before, %d", got, ok, err, id)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Flags&(unix.ST_RDONLY|unix.ST_NODEV|unix.ST_NOSUID) != unix.ST_RDONLY|unix.ST_NODEV {
		t.Errorf("flags %#x", st.Flags)
	}
	if _, err := Prepare(path); err == nil || !strings.Contains(err.Error(), "mounted there already") {
		t.Errorf("on a mountpoint: %v", err)
	}
	f, err := os.Open(filepath.Join(path, "file"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmount(path); !errors.Is(err, unix.EBUSY) {
		t.Errorf("with an open file: %v, want EBUSY", err)
	}
	f.Close()
	if err := Unmount(path); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := Mounted(path); err != nil || ok {
		t.Errorf("after unmount: %v, %v", ok, err)
	}
}

func TestRefused(t *testing.T) {
	dir := place(t)
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"real", "real/inner", "full", "full/x", "open", "open/x", "group", "sticky", "foreign"} {
		if err := os.Mkdir(in(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	err := errors.Join(
		os.WriteFile(in("file"), nil, 0o600), os.Symlink("real", in("link")), os.Symlink("missing", in("dangling")),
		os.Chmod(in("open"), 0o777), os.Chmod(in("group"), 0o775), os.Chmod(in("sticky"), 0o777|os.ModeSticky), os.Chown(in("foreign"), 1234, 0),
	)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/":                 "root directory",
		in("link"):          "symbolic link, which is not followed\n  use the directory it leads to: " + in("real"),
		in("link/inner"):    "symbolic link",
		in("dangling"):      "symbolic link",
		in("file"):          "not a directory",
		in("file/x"):        "not a directory",
		in("missing/x"):     "make it first",
		in("full"):          `not empty (it has "x")`,
		in("open/x"):        "may be written by others (mode 0777)",
		in("open/new"):      "may be written by others",
		in("group/new"):     "may be written by others (mode 0775)",
		in("sticky/new"):    "may be written by others (mode 01777)",
		in("foreign/new"):   "belongs to user 1234",
		os.TempDir() + "/x": "may be written by others",
	} {
		d, err := Prepare(path)
		if err == nil {
			d.Abandon()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
	// The last directory may be anybody's: who can write in it cannot move it.
	d, err := Prepare(in("sticky"))
	if err != nil {
		t.Fatal(err)
	}
	d.Abandon()
}

// Between Prepare and Attach an image is fetched, which takes minutes.
func TestChangedMeanwhile(t *testing.T) {
	dir := place(t)
	for name, change := range map[string]func(path string) error{
		"not empty": func(path string) error { return os.WriteFile(filepath.Join(path, "x"), nil, 0o600) },
		"symbolic link": func(path string) error {
			return errors.Join(os.Remove(path), os.Symlink("/mnt", path))
		},
		"does not exist": os.Remove,
	} {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		d, err := Prepare(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := change(path); err != nil {
			t.Fatal(err)
		}
		if err := d.Attach(clone(t, 0)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %q", err, name)
		}
		d.Close()
	}
}

func TestAbandon(t *testing.T) {
	dir := place(t)
	for _, c := range []struct {
		name string
		made bool
	}{{"new", true}, {"old", false}} {
		path := filepath.Join(dir, c.name)
		if !c.made {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		d, err := Prepare(path)
		if err != nil {
			t.Fatal(err)
		}
		d.Abandon()
		if _, err := os.Stat(path); (err != nil) != c.made {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestClean(t *testing.T) {
	real := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	t.Chdir(link)
	for arg, want := range map[string]string{"x/": real + "/x", "./a/../b": real + "/b", "/a//b/.": "/a/b"} {
		if got, err := Clean(arg); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", arg, got, err, want)
		}
	}
	if _, err := Clean(""); err == nil {
		t.Error("an empty name was taken")
	}
}
