package backendtest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountinfo"
)

// stage is where one test plays: a directory of its own, which must be empty of mounts and loop devices at the end.
type stage struct {
	dir        string
	newBackend func(*testing.T) fsbackend.Backend
	newImage   func(t testing.TB, dir string, n int) fsbackend.Image
	backend    fsbackend.Backend
}

// prop is one image and the mountpoint that is meant for it.
type prop struct {
	n      int
	image  fsbackend.Image
	target string
}

func (s *stage) open(t *testing.T) {
	s.dir = t.TempDir()
	s.backend = s.newBackend(t)
	t.Cleanup(func() { s.close(t) })
}

// close looks for what was left behind, and removes it so that other tests do not suffer.
func (s *stage) close(t *testing.T) {
	points, err := fsbackend.MountsBelow(s.dir)
	if err != nil {
		t.Error(err)
	}
	if len(points) > 0 {
		t.Errorf("left mounted: %v", points)
	}
	for _, p := range slices.Backward(points) {
		if err := fsbackend.Unmount(p); err != nil {
			t.Error(err)
		}
	}
	waitForLoops(t, s.dir)
}

// prop makes image n and its mountpoint, which has the short name that the snapshotter uses.
func (s *stage) prop(t *testing.T, n int) prop {
	t.Helper()
	p := prop{n: n, target: filepath.Join(s.dir, "m", fmt.Sprint(n))}
	files := filepath.Join(s.dir, "layers", fmt.Sprintf("%064x", n))
	for _, d := range []string{p.target, files} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	p.image = s.newImage(t, files, n)
	return p
}

func (s *stage) mount(t *testing.T, p prop) {
	t.Helper()
	if err := s.backend.Mount(t.Context(), p.image, p.target); err != nil {
		t.Fatal(err)
	}
}

func (s *stage) unmount(t *testing.T, p prop) {
	t.Helper()
	if err := s.backend.Unmount(t.Context(), p.target); err != nil {
		t.Fatal(err)
	}
	if n := len(mountsAt(t, p.target)); n != 0 {
		t.Fatalf("%d mounts on %s after Unmount", n, p.target)
	}
}

func (p prop) open(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(filepath.Join(p.target, FileName))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// mustRead reads the mounted file and compares.
func (p prop) mustRead(t *testing.T) {
	t.Helper()
	f := p.open(t)
	defer f.Close()
	mustMatch(t, f, p.n)
}

// mustMatch reads an open file from its data blob, not from the page cache, and compares it with the content of image n.
func mustMatch(t *testing.T, f *os.File, n int) {
	t.Helper()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<40))
	if err != nil {
		t.Fatalf("read image %d: %v", n, err)
	}
	if !bytes.Equal(got, Content(n)) {
		t.Fatalf("image %d read back with wrong bytes", n)
	}
}

func mountsAt(t *testing.T, target string) []mountinfo.Entry {
	t.Helper()
	entries, err := mountinfo.Read(mountinfo.Self)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(entries, func(e mountinfo.Entry) bool { return e.Point != target })
}

// waitForLoops fails the test if loop devices with backing files below dir stay.
func waitForLoops(t *testing.T, dir string) {
	t.Helper()
	var busy []string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if busy = loops(dir); len(busy) == 0 {
			return
		}
	}
	t.Errorf("loop devices left: %v", busy)
}

func loops(dir string) []string {
	var busy []string
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), dir+"/") {
			busy = append(busy, f+": "+strings.TrimSpace(string(b)))
		}
	}
	return busy
}
