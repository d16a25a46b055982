package watch

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// TestKeeperLost: without a keeper nothing new is mounted, and what is mounted is served; one that comes back holds everything again.
func TestKeeperLost(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	mounted, orphaned, waiting := w.usual(1), w.usual(2), w.usual(3)
	for _, in := range []*instance{mounted, orphaned, waiting} {
		d.open(in)
	}
	root, orphanRoot := d.mount(mounted), d.mount(orphaned)
	d.orphan(orphaned)
	before := w.holds()
	w.killKeeper()
	eventually(t, "it is known", func() bool { connected, _ := d.Keeper(); return !connected })
	if err := d.Ready(); err == nil || !strings.Contains(err.Error(), w.address) {
		t.Errorf("ready: %v", err)
	}
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.Mount(soon, waiting.name); err == nil {
		t.Error("mounted without a keeper")
	}
	if got, err := os.ReadFile(filepath.Join(root, "a")); err != nil || !bytes.Equal(got, mounted.files["a"]) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	later := make(chan error, 1)
	go func() {
		_, err := d.Mount(t.Context(), waiting.name)
		later <- err
	}()
	w.startKeeper()
	must(t, <-later)
	eventually(t, "all is held", func() bool { return len(w.holds()) == 3 })
	for _, name := range before {
		if !slices.Contains(w.holds(), name) {
			t.Errorf("%s is not held any more", name)
		}
	}
	must(t, d.Ready())
	mounted.reads(root)
	orphaned.reads(orphanRoot)
}

// TestCompleteWithoutConnection: what becomes complete, or is not read from any more, while the connection is lost is not held for ever by a keeper that lives.
func TestCompleteWithoutConnection(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	in, orphaned := w.usual(1), w.usual(2)
	d.open(in)
	d.open(orphaned)
	root, orphanRoot := d.mount(in), d.mount(orphaned)
	d.orphan(orphaned)
	aside := w.address + ".aside"
	must(t, os.Rename(w.address, aside))
	d.mu.Lock()
	client := d.keeper
	d.mu.Unlock()
	must(t, client.Close())
	eventually(t, "it is known", func() bool { connected, _ := d.Keeper(); return !connected })
	in.reads(root)
	w.unmount(orphanRoot)
	eventually(t, "all is closed", d.Idle)
	if r, err := keeper.Status(t.Context(), aside); err != nil || len(r.Names) != 2 {
		t.Errorf("a keeper that was told nothing holds %q, %v", r.Names, err)
	}
	must(t, os.Rename(aside, w.address))
	eventually(t, "nothing is held", func() bool { return len(w.holds()) == 0 })
}

// TestRestart: another process goes on with everything. Who waits for data meanwhile waits, and reads them.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	first := w.daemon()
	mounted, orphaned, unmounted := w.usual(1), w.usual(2), w.usual(3)
	for _, in := range []*instance{mounted, orphaned, unmounted} {
		first.open(in)
	}
	root, orphanRoot := first.mount(mounted), first.mount(orphaned)
	dir := first.orphan(orphaned)
	if _, err := os.ReadFile(filepath.Join(root, "a")); err != nil {
		t.Error(err)
	}
	release := mounted.block()
	read := make(chan struct{})
	go func() {
		mounted.reads(root)
		close(read)
	}()
	eventually(t, "the reader waits", func() bool { return len(first.report(mounted).Requests.InFlight) > 0 })
	first.stop()
	select {
	case <-read:
		t.Error("the reader did not wait for the next process")
	case <-time.After(20 * time.Millisecond):
	}
	release()

	second := w.daemon()
	if !second.Watches(mounted.name) || !second.Serves(dir) || second.Watches(orphaned.name) || second.report(unmounted) != nil {
		t.Errorf("%+v", second.Reports())
	}
	second.open(mounted) // does nothing
	<-read
	orphaned.reads(orphanRoot)
	eventually(t, "all is complete", func() bool { return second.Idle() && len(w.holds()) == 0 })
	if mounted.completed() != 1 || orphaned.completed() != 0 || !w.isGone(dir) {
		t.Errorf("completed %d and %d times, the orphan is gone: %v", mounted.completed(), orphaned.completed(), w.isGone(dir))
	}
	if want := []string{mounted.dir, dir}; len(w.asked) != 2 || !slices.Contains(w.asked, want[0]) || !slices.Contains(w.asked, want[1]) {
		t.Errorf("asked for %q, want %q", w.asked, want)
	}
}

// TestRestartKeepsData: what was there before a restart is not fetched again.
func TestRestartKeepsData(t *testing.T) {
	w := newWorld(t)
	in := w.usual(1)
	first := w.daemon()
	first.open(in)
	root := first.mount(in)
	if _, err := os.ReadFile(filepath.Join(root, "a")); err != nil {
		t.Error(err)
	}
	present := first.report(in).Progress.PresentBytes
	first.stop()
	second := w.daemon()
	if p := second.report(in).Progress; p.PresentBytes < present {
		t.Errorf("%+v, there were %d bytes", p, present)
	}
}

// TestDamagedWhileAway: what the keeper holds and cannot be served is refused: its readers get errors, and neither zeros nor silence.
func TestDamagedWhileAway(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"table": func(dir string) error { return os.Truncate(filepath.Join(dir, blob.ExtentsName), 100) },
		"unknown": func(dir string) error {
			return os.Rename(dir, filepath.Join(filepath.Dir(filepath.Dir(dir)), "orphans", "x"))
		},
		"no longer": func(dir string) error { return os.Remove(filepath.Join(dir, blob.DataName)) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			in := w.usual(1)
			first := w.daemon()
			first.open(in)
			root := first.mount(in)
			first.stop()
			must(t, damage(in.dir))
			if name == "unknown" {
				clear(w.known)
			}
			second := w.daemon()
			if !second.Idle() {
				t.Errorf("it is served: %+v", second.Reports())
			}
			if refuses := second.Watches(in.name) || second.Serves(filepath.Join(w.root, "orphans", "x")); !refuses {
				t.Error("that it is refused is not known")
			}
			read := make(chan error, 1)
			go func() {
				_, err := os.ReadFile(filepath.Join(root, "large"))
				read <- err
			}()
			select {
			case err := <-read:
				if !errors.Is(err, unix.EIO) {
					t.Errorf("got %v, want EIO", err)
				}
			case <-time.After(patient / 6):
				t.Error("the reader waits")
				w.killKeeper() // so that it does not
				second.stop()
				<-read
			}
		})
	}
}

// TestSecret: a process leaves something for the next one.
func TestSecret(t *testing.T) {
	w := newWorld(t)
	first := w.daemon()
	if w.secret != nil {
		t.Errorf("the first one got %q", w.secret)
	}
	f, err := keeper.Seal([]byte("learned"))
	must(t, err)
	defer f.Close()
	must(t, first.Secret(t.Context(), f))
	first.stop()
	w.daemon()
	if string(w.secret) != "learned" {
		t.Errorf("the second one got %q", w.secret)
	}
}

var errStart = errors.New("made by a test")

// TestNoKeeper: without a keeper a daemon starts, and says that nothing can be watched.
func TestNoKeeper(t *testing.T) {
	w := &world{t: t, address: filepath.Join(t.TempDir(), "s"), known: map[string]*instance{}}
	o := Options{Keeper: w.address, Describe: w.describe}
	if err := New(o).Connect(t.Context()); err == nil || !strings.Contains(err.Error(), w.address) {
		t.Errorf("got %v", err)
	}
	started := 0
	o.Start = func(context.Context) error { started++; return errStart }
	if err := New(o).Connect(t.Context()); !errors.Is(err, errStart) || started != 1 {
		t.Errorf("got %v, started %d times", err, started)
	}
	if err := New(o).Ready(); err == nil {
		t.Error("ready")
	}
}
