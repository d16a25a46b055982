package fsbackend

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountinfo"
)

func readAt(root *os.File, name string) (string, error) {
	fd, err := unix.Openat2(int(root.Fd()), name, &unix.OpenHow{Flags: unix.O_RDONLY, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	b := make([]byte, 64)
	n, err := unix.Read(fd, b)
	return string(b[:max(n, 0)]), err
}

// An overlay that is mounted nowhere shows what the same directories show in a container, and nobody sees it.
func TestOpenOverlay(t *testing.T) {
	for name, open := range map[string]func(lowers, options []string) (*os.File, error){
		"as this kernel wants it": OpenOverlay, "as kernels before 6.7": openOverlayAtOnce,
	} {
		t.Run(name, func(t *testing.T) { testOpenOverlay(t, open) })
	}
}

func testOpenOverlay(t *testing.T, open func(lowers, options []string) (*os.File, error)) {
	dir := mountDir(t)
	top, bottom := mkdir(t, dir, "top"), mkdir(t, dir, "bottom")
	mkdir(t, bottom, "gone")
	for path, text := range map[string]string{"top/both": "top", "bottom/both": "bottom", "bottom/one": "one", "bottom/gone/file": "gone"} {
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mknod(filepath.Join(top, "gone"), unix.S_IFCHR, 0); err != nil { // a whiteout
		t.Fatal(err)
	}
	if err := os.Symlink("/one", filepath.Join(top, "link")); err != nil {
		t.Fatal(err)
	}
	root, err := open([]string{top, bottom}, []string{"index=off", "redirect_dir=nofollow"})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for name, want := range map[string]string{"both": "top", "one": "one", "/link": "one", "../../both": "top"} {
		if got, err := readAt(root, name); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	if got, err := readAt(root, "gone/file"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a file that was taken away: %q, %v", got, err)
	}
	if fd, err := unix.Openat(int(root.Fd()), "new", unix.O_CREAT|unix.O_WRONLY, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("a file was made: %d, %v", fd, err)
	}
	if points := overlaysOf(t, dir); len(points) > 0 {
		t.Errorf("it is mounted on %q", points)
	}
}

// TestOpenOverlayOfMany: as many as other kernels than this one must be able to have.
func TestOpenOverlayOfMany(t *testing.T) {
	dir := mountDir(t)
	var lowers []string
	for i := range 40 {
		lowers = append(lowers, mkdir(t, dir, fmt.Sprint(i)))
		if err := os.WriteFile(filepath.Join(lowers[i], fmt.Sprint(i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := openOverlayAtOnce(lowers, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if names, err := root.Readdirnames(-1); err != nil || len(names) != len(lowers) {
		t.Errorf("%q, %v", names, err)
	}
}

func TestOpenOverlayRefuses(t *testing.T) {
	dir := mountDir(t)
	for name, c := range map[string]struct{ lowers, options []string }{
		"a missing directory":     {lowers: []string{dir, filepath.Join(dir, "missing")}},
		"an unknown option":       {[]string{dir, mkdir(t, dir, "other")}, []string{"nosuch=1"}},
		"one directory":           {lowers: []string{dir}},
		"a name that is too long": {lowers: []string{dir, mkdir(t, dir, strings.Repeat("x", 200), strings.Repeat("x", 200))}},
	} {
		f, err := OpenOverlay(c.lowers, c.options)
		if err == nil {
			f.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

// overlaysOf returns where overlays of directories below dir are mounted.
func overlaysOf(t *testing.T, dir string) (points []string) {
	t.Helper()
	entries, err := mountinfo.Read(mountinfo.Self)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.FSType == "overlay" && slices.ContainsFunc(e.Options(), func(o mountinfo.Option) bool { return strings.HasPrefix(o.Value, dir) }) {
			points = append(points, e.Point)
		}
	}
	return points
}
