package watch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestKeeperDoesNotAnswer: while a keeper is there and does not answer, nothing is known of what it holds, and that is said; when it answers, or is gone,
// it is known.
func TestKeeperDoesNotAnswer(t *testing.T) {
	for name, answers := range map[string]bool{"it answers": true, "it ends": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			first := w.daemon()
			in, orphaned := w.usual(1), w.usual(2)
			first.open(in)
			first.open(orphaned)
			root, orphanRoot := first.mount(in), first.mount(orphaned)
			dir := first.orphan(orphaned)
			first.stop()
			w.pauseKeeper()

			second := w.prepare()
			settled := make(chan bool, 1)
			second.o.Settled = func(context.Context) error {
				settled <- second.Watches(in.name) && second.Serves(dir)
				return nil
			}
			var ending atomic.Bool
			second.o.Start = func(context.Context) error {
				if !ending.Load() {
					t.Error("a second keeper is started")
				}
				return errStart
			}
			soon, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if err := second.Connect(soon); !errors.Is(err, ErrUnsure) {
				t.Errorf("got %v", err)
			}
			second.run()
			if err := second.Open(in.in(in.dir)); !errors.Is(err, ErrUnsure) {
				t.Errorf("opened what the keeper may hold: %v", err)
			}
			if second.Unsure() == nil || second.Idle() || !errors.Is(second.Ready(), ErrUnsure) {
				t.Errorf("unsure %v, idle %v, ready %v", second.Unsure(), second.Idle(), second.Ready())
			}
			if !answers {
				ending.Store(true)
				w.killKeeper()
				if watched := wait(t, settled); watched || second.Unsure() != nil {
					t.Errorf("watched %v, unsure %v", watched, second.Unsure())
				}
				return
			}
			read := make(chan struct{})
			go func() {
				in.reads(root)
				orphaned.reads(orphanRoot)
				close(read)
			}()
			select {
			case <-read:
				t.Error("the readers did not wait")
			case <-settled:
				t.Error("settled by whom?")
			case <-time.After(20 * time.Millisecond):
			}
			must(t, w.keeper.Process.Signal(unix.SIGCONT))
			if !wait(t, settled) {
				t.Error("it is not known what the keeper holds")
			}
			<-read
			eventually(t, "all is complete", func() bool { return second.Idle() && len(w.holds()) == 0 })
			must(t, second.Ready())
		})
	}
}

// TestLateKeeper: a keeper that comes late, and holds something, changes nothing about what is open; what it holds itself is served through its
// descriptors, whether it was open or not.
func TestLateKeeper(t *testing.T) {
	w := newWorld(t)
	first := w.daemon()
	both, heldOnly, orphaned := w.usual(1), w.usual(2), w.usual(3)
	openOnly := w.usual(4)
	roots := map[*instance]string{}
	for _, in := range []*instance{both, heldOnly, orphaned} {
		first.open(in)
		roots[in] = first.mount(in)
	}
	first.stop()
	aside := filepath.Dir(w.address) + ".aside" // with its lock: it seems to be gone
	must(t, os.Rename(filepath.Dir(w.address), aside))

	second := w.prepare()
	if err := second.Connect(t.Context()); err == nil || errors.Is(err, ErrUnsure) {
		t.Errorf("got %v", err)
	}
	for _, in := range []*instance{both, orphaned, openOnly} {
		second.open(in)
	}
	dir := second.orphan(orphaned)
	second.mu.Lock()
	stays, goes := second.current[openOnly.name], second.current[both.name]
	second.mu.Unlock()
	must(t, os.Rename(aside, filepath.Dir(w.address)))
	second.run()
	eventually(t, "it is connected", func() bool { return second.Ready() == nil })
	second.mu.Lock()
	if second.current[openOnly.name] != stays || len(second.current) != 3 || len(second.orphans) != 1 {
		t.Errorf("current %v, orphans %v", second.current, second.orphans)
	}
	second.mu.Unlock()
	if !goes.closed.Load() {
		t.Error("what was opened twice is open twice")
	}
	if !second.Watches(both.name) || !second.Watches(heldOnly.name) || !second.Serves(dir) {
		t.Errorf("%+v", second.Reports())
	}
	roots[openOnly] = second.mount(openOnly)
	for in, root := range roots {
		in.reads(root)
	}
	eventually(t, "all is complete", func() bool { return second.Idle() && len(w.holds()) == 0 })
}

// TestLeftWhileTakenOver: an instance that leaves the store while it is taken over from a late keeper is served as an orphan, where its files are,
// also if it is made anew at once.
func TestLeftWhileTakenOver(t *testing.T) {
	for _, made := range []bool{false, true} {
		t.Run(fmt.Sprint("made again ", made), func(t *testing.T) {
			w := newWorld(t)
			first := w.daemon()
			in := w.usual(1)
			first.open(in)
			root := first.mount(in)
			first.stop()

			second := w.prepare()
			var dir string
			second.o.Describe = func(at string) (Layer, error) {
				layer, err := w.describe(at)
				if dir == "" {
					dir = second.orphan(in)
					if made {
						in.make(in.dir)
					}
				}
				return layer, err
			}
			must(t, second.Connect(t.Context()))
			if !second.Serves(dir) || second.Watches(in.name) {
				t.Errorf("in %s: %+v", dir, second.Reports())
			}
			second.run()
			in.reads(root)
			eventually(t, "it has gone", func() bool { return second.Idle() && w.isGone(dir) })
		})
	}
}

// TestStuckIsNotOpened: the data blob of what the keeper holds and cannot be served is watched, by somebody who only refuses: it is not opened, and
// the error says why; new files of the same instance are.
func TestStuckIsNotOpened(t *testing.T) {
	w := newWorld(t)
	first := w.daemon()
	in := w.usual(1)
	first.open(in)
	root := first.mount(in)
	first.stop()
	table := filepath.Join(in.dir, "extents")
	b, err := os.ReadFile(table)
	must(t, err)
	must(t, os.Truncate(table, 100))
	second := w.daemon()
	must(t, os.WriteFile(table, b, 0o600)) // the files alone say nothing
	if err := second.Open(in.in(in.dir)); err == nil || !second.Watches(in.name) {
		t.Errorf("opened: %v, watched %v", err, second.Watches(in.name))
	}
	if _, err := os.ReadFile(filepath.Join(root, "large")); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v, want EIO", err)
	}
	must(t, os.Rename(in.dir, filepath.Join(w.root, "orphans", "stuck")))
	in.make(in.dir)
	second.open(in)
	again := second.mount(in)
	if got, err := os.ReadFile(filepath.Join(again, "a")); err != nil || !bytes.Equal(got, in.files["a"]) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
}
