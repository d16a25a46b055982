package watch

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
)

// TestLeft: what is taken out of the store is served as long as somebody reads from it, also after its mount has gone; then everything of it goes.
func TestLeft(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	in := w.usual(1)
	cancelled := make(chan struct{})
	in.check = func(ctx context.Context, _ ondemand.Pace, _ func(int, []byte) error) error {
		<-ctx.Done()
		close(cancelled)
		return ctx.Err()
	}
	d.open(in)
	root := d.mount(in)
	f, err := os.Open(filepath.Join(root, "large"))
	must(t, err)
	defer f.Close()
	eventually(t, "it is checked", func() bool { r := d.report(in); return r != nil && r.Fill.Filling })
	dir := d.orphan(in)
	<-cancelled
	if d.Watches(in.name) || !d.Serves(dir) || d.Serves(dir+"x") {
		t.Errorf("watched %v, served %v, something else %v", d.Watches(in.name), d.Serves(dir), d.Serves(dir+"x"))
	}
	if r := d.report(in); r == nil || r.Orphan != dir {
		t.Errorf("%+v", r)
	}

	// The same layer once more, at the same time.
	in.check = nil
	in.make(filepath.Join(w.root, "layers", in.name))
	d.open(in)
	second := d.mount(in)
	if n := len(w.holds()); n != 2 {
		t.Errorf("%d are held, want 2", n)
	}

	w.unmount(root)
	d.Sweep()
	if w.isGone(dir) || !d.Serves(dir) {
		t.Fatal("gone while a file is open")
	}
	p := make([]byte, 4096)
	for _, off := range []int64{0, 500_000, 900_000} {
		if _, err := f.ReadAt(p, off); err != nil || !bytes.Equal(p, in.files["large"][off:off+4096]) {
			t.Errorf("at %d: other bytes, %v", off, err)
		}
	}
	must(t, f.Close())
	eventually(t, "it is gone", func() bool { return w.isGone(dir) })
	if d.Serves(dir) || !d.Watches(in.name) || len(w.holds()) != 1 {
		t.Errorf("served %v, the other is watched %v, held %q", d.Serves(dir), d.Watches(in.name), w.holds())
	}
	in.reads(second)
	eventually(t, "the other is complete", func() bool { return d.Idle() && len(w.holds()) == 0 })
	if in.completed() != 1 {
		t.Errorf("completed %d times: an orphan is no instance of the store", in.completed())
	}
}

// TestLeftUnmounted: what was never mounted, or not open at all, is gone at once.
func TestLeftUnmounted(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	in := w.usual(1)
	d.open(in)
	dir := d.orphan(in)
	d.Left("unknown", dir)
	eventually(t, "it is gone", func() bool { return w.isGone(dir) })
	if !d.Idle() {
		t.Errorf("%+v", d.Reports())
	}
}

// TestOrphanCompletes: an orphan all of whose data have come needs nobody, whoever reads from it.
func TestOrphanCompletes(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	in := w.usual(1)
	d.open(in)
	root := d.mount(in)
	dir := d.orphan(in)
	in.reads(root)
	eventually(t, "it is gone", func() bool { return w.isGone(dir) })
	if in.completed() > 0 || len(w.holds()) > 0 || d.Serves(dir) {
		t.Errorf("completed %d times, held %q", in.completed(), w.holds())
	}
	must(t, os.RemoveAll(dir))
	must(t, unix.Fadvise(openFD(t, filepath.Join(root, "large")), 0, 0, unix.FADV_DONTNEED))
	in.reads(root)
}

func openFD(t *testing.T, path string) int {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return int(f.Fd())
}

// TestAlive: a superblock is alive as long as anybody has it, mounted or not.
func TestAlive(t *testing.T) {
	w := newWorld(t)
	in := w.usual(1)
	alive := func(want bool) {
		t.Helper()
		if got, err := Alive(in.dir); got != want || err != nil {
			t.Errorf("alive %v, %v; want %v", got, err, want)
		}
	}
	alive(false)
	root, err := w.mountFiles(filepath.Join(in.dir, metaName), filepath.Join(in.dir, blob.DataName))
	must(t, err)
	alive(true)
	f, err := os.Open(filepath.Join(root, "a"))
	must(t, err)
	defer f.Close()
	w.unmount(root)
	alive(true)
	must(t, f.Close())
	eventually(t, "it is not alive", func() bool { got, err := Alive(in.dir); return !got && err == nil })
	if _, err := Alive(w.root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of what is not there: %v", err)
	}
}

// TestOrphanWithoutDirectory: the files of an instance may have been deleted, by somebody or because it was damaged; what is mounted is served all
// the same, and what has come in their place is not deleted with it.
func TestOrphanWithoutDirectory(t *testing.T) {
	for name, leave := range map[string]func(d *daemon, in *instance) string{
		"orphan": func(d *daemon, in *instance) string {
			dir := d.orphan(in)
			must(t, os.RemoveAll(dir))
			return dir
		},
		"lost": func(d *daemon, in *instance) string {
			must(t, os.RemoveAll(in.dir)) // as when a store discards what is damaged, and nobody tells of it
			in.make(in.dir)
			must(t, d.Open(in.in(in.dir)))
			return in.dir
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			d := w.daemon()
			in := w.usual(1)
			d.open(in)
			root := d.mount(in)
			f, err := os.Open(filepath.Join(root, "large"))
			must(t, err)
			defer f.Close()
			w.unmount(root)
			dir := leave(d, in)
			for range 2 {
				d.Sweep()
			}
			p := make([]byte, 4096)
			for _, off := range []int64{500_000, 900_000} {
				if _, err := f.ReadAt(p, off); err != nil || !bytes.Equal(p, in.files["large"][off:off+4096]) {
					t.Errorf("at %d: other bytes, %v", off, err)
				}
			}
			must(t, f.Close())
			eventually(t, "its group is closed", func() bool { return len(w.holds()) == 0 })
			eventually(t, "it is forgotten", func() bool {
				return !slices.ContainsFunc(d.Reports(), func(r Report) bool { return r.Orphan != "" })
			})
			if w.isGone(dir) {
				t.Errorf("%s was to be deleted", dir)
			}
		})
	}
}
