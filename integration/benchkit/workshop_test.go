package benchkit

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

func TestAllocated(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const size = 1 << 20
	counted := write("a/file", size)
	write("a/except/file", 4*size)
	hole := write("a/hole", 0)
	if err := errors.Join(os.Link(counted, filepath.Join(dir, "a/link")), os.Truncate(hole, 64*size)); err != nil {
		t.Fatal(err)
	}
	if _, err := SyncDisk(dir); err != nil { // blocks are allocated late
		t.Fatal(err)
	}
	got, err := Allocated(filepath.Join(dir, "a/except"), filepath.Join(dir, "a"), filepath.Join(dir, "missing"))
	if err != nil || got < size || got > size+size/2 {
		t.Errorf("allocated %d, error %v, want a little more than %d: the file once, no holes, nothing that is left out", got, err, size)
	}
}

// TestWorkshop shows that each use gets an empty file system, and that nothing is left.
func TestWorkshop(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.Tool("mkfs.ext4"))
	dir := filepath.Join(t.TempDir(), "work")
	const size = 64 << 20
	w, err := OpenWorkshop(t.Context(), dir, size, nil)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := OpenWorkshop(t.Context(), dir, size, nil); err == nil {
		second.Close()
		t.Fatal("two benchmarks share a directory")
	}
	failed := errors.New("failed")
	for range 2 {
		err := w.WithFreshDisk(t.Context(), func(fs string) error {
			if mounted, err := fsbackend.Mounted(fs); err != nil || !mounted {
				t.Errorf("%s is mounted: %v, error %v", fs, mounted, err)
			}
			name := filepath.Join(fs, "file")
			if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the file of the use before is there (%v)", err)
			}
			return errors.Join(failed, os.WriteFile(name, []byte("x"), 0o600))
		})
		if !errors.Is(err, failed) {
			t.Errorf("error is %v, want that of the use", err)
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.WithFreshDisk(cancelled, func(string) error { return nil }); err == nil {
		t.Error("a cancelled benchmark goes on")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there (%v)", dir, err)
	}
	if points, err := fsbackend.MountsBelow(filepath.Dir(dir)); err != nil || len(points) > 0 {
		t.Errorf("still mounted: %q, error %v", points, err)
	}
}
