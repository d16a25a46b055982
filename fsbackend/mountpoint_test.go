package fsbackend

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountapi"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// mountDir returns a directory below which everything is unmounted at the end.
func mountDir(t *testing.T) string {
	t.Helper()
	testenv.Need(t, testenv.Root)
	dir := t.TempDir()
	t.Cleanup(func() {
		points, err := MountsBelow(dir)
		if err != nil {
			t.Error(err)
		}
		for _, p := range slices.Backward(points) {
			if err := Unmount(p); err != nil {
				t.Error(err)
			}
		}
	})
	return dir
}

func mkdir(t *testing.T, elems ...string) string {
	t.Helper()
	dir := filepath.Join(elems...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func mountTmpfs(t *testing.T, target string) {
	t.Helper()
	if err := unix.Mount("tmpfs", target, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
}

func mustBeMounted(t *testing.T, target string, want bool) {
	t.Helper()
	if got, err := Mounted(target); err != nil || got != want {
		t.Fatalf("Mounted(%s) = %v, %v, want %v", target, got, err, want)
	}
}

func TestMounted(t *testing.T) {
	dir := mountDir(t)
	a := mkdir(t, dir, "a")
	mustBeMounted(t, a, false)
	mustBeMounted(t, filepath.Join(dir, "missing"), false)
	mountTmpfs(t, a)
	mustBeMounted(t, a, true)
	mustBeMounted(t, mkdir(t, a, "inside"), false)
	// A bind mount of the same filesystem is a mountpoint too, which a comparison of device numbers would not show.
	b := mkdir(t, dir, "b")
	if err := unix.Mount(dir, b, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	mustBeMounted(t, b, true)
	if _, err := Mounted(filepath.Join(dir, "b", "a", "inside", "x\x00y")); err == nil {
		t.Error("no error for an impossible name")
	}
}

func TestUnmount(t *testing.T) {
	dir := mountDir(t)
	a := mkdir(t, dir, "a")
	for name, target := range map[string]string{"nothing": a, "missing": filepath.Join(dir, "missing")} {
		if err := Unmount(target); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Two processes raced: both mounts go.
	mountTmpfs(t, a)
	mountTmpfs(t, a)
	if err := Unmount(a); err != nil {
		t.Fatal(err)
	}
	mustBeMounted(t, a, false)

	// In use: gone from the tree, and still there for its user.
	mountTmpfs(t, a)
	f, err := os.Create(filepath.Join(a, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Unmount(a); err != nil {
		t.Fatal(err)
	}
	mustBeMounted(t, a, false)
	if _, err := f.WriteString("x"); err != nil {
		t.Error(err)
	}
}

func TestUnmountFollowsNoLink(t *testing.T) {
	dir := mountDir(t)
	a, link := mkdir(t, dir, "a"), filepath.Join(dir, "link")
	mountTmpfs(t, a)
	if err := os.Symlink(a, link); err != nil {
		t.Fatal(err)
	}
	Unmount(link)
	mustBeMounted(t, a, true)
}

func TestBindReadOnly(t *testing.T) {
	dir := mountDir(t)
	src, target := mkdir(t, dir, "src"), mkdir(t, dir, "target")
	if err := os.WriteFile(filepath.Join(src, "file"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	mountTmpfs(t, mkdir(t, src, "below"))
	for range 2 {
		if err := BindReadOnly(src, target); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(target, "file")); err != nil || string(b) != "hello" {
		t.Errorf("read %q, %v", b, err)
	}
	if err := os.WriteFile(filepath.Join(target, "file"), nil, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v", err)
	}
	mustBeMounted(t, filepath.Join(target, "below"), false)
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil {
		t.Fatal(err)
	}
	if want := int64(unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV); st.Flags&want != want {
		t.Errorf("flags are %#x", st.Flags)
	}
	if err := os.WriteFile(filepath.Join(src, "file"), nil, 0o600); err != nil {
		t.Errorf("the directory itself became read-only: %v", err)
	}
	points, err := MountsBelow(target)
	if err != nil || len(points) != 0 {
		t.Errorf("mounts below the target: %v, %v", points, err)
	}
	if err := Unmount(target); err != nil {
		t.Fatal(err)
	}
	mustBeMounted(t, target, false)
	if err := BindReadOnly(filepath.Join(dir, "missing"), target); !errors.Is(err, unix.ENOENT) {
		t.Errorf("bind of a missing directory: %v", err)
	}
	if err := BindReadOnly(link(t, src), target); err == nil {
		t.Error("a symbolic link was followed")
	}
	if err := BindReadOnly(src, filepath.Join(dir, "missing")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("bind on a missing directory: %v", err)
	}
}

func TestMountsBelow(t *testing.T) {
	dir := mountDir(t)
	root := mkdir(t, dir, "root")
	odd := mkdir(t, root, "a b\\,\n")
	mountTmpfs(t, odd)
	inner := mkdir(t, odd, "inner")
	mountTmpfs(t, inner)
	mountTmpfs(t, mkdir(t, dir, "root2"))
	for _, spelling := range []string{root, root + "/", link(t, root)} {
		got, err := MountsBelow(spelling)
		want := []string{filepath.Join(spelling, "a b\\,\n"), filepath.Join(spelling, "a b\\,\n", "inner")}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("MountsBelow(%q) = %q, %v, want %q", spelling, got, err, want)
		}
	}
	if got, err := MountsBelow(inner); err != nil || len(got) != 0 {
		t.Errorf("a mountpoint is below itself: %q, %v", got, err)
	}
}

// link makes a symbolic link to dir elsewhere.
func link(t *testing.T, dir string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, name); err != nil {
		t.Fatal(err)
	}
	return name
}

// mountOverlay mounts an overlay on target, through the same calls that a runtime uses.
func mountOverlay(t *testing.T, target string, options ...[2]string) {
	t.Helper()
	c, err := mountapi.Open("overlay")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, o := range options {
		if err := c.Set(o[0], o[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Create(); err != nil {
		t.Fatal(err)
	}
	m, err := c.Mount(0)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Attach(target); err != nil {
		t.Fatal(err)
	}
}
