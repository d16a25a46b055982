package snapshotter

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// orphansOf lists the orphans of a store.
func orphansOf(t *testing.T, s *Snapshotter) []string {
	t.Helper()
	dirs, err := s.layers.Orphans()
	must(t, err)
	return dirs
}

// TestPoisoned: after nobody has answered for a while, who reads from the old mount gets errors where data are missing, is named, and new mounts
// show new files, with the data that are certain.
func TestPoisoned(t *testing.T) {
	w := newLazyWorld(t)
	s := w.start()
	top, inst := w.pullLazily(s, lazyLayer(t))
	w.fillFile(s, inst, lazyFile("one"))
	mounts, err := s.Prepare(t.Context(), "box", top)
	f := opened(t, mounts, err, "two")
	if p, err := readUncached(f, 0); err != nil || !bytes.Equal(p, make([]byte, len(p))) {
		t.Fatalf("somebody has answered: %x..., %v", p[:8], err)
	}
	pull(t, s, "unrelated", "", "file", "x")
	_, err = s.Prepare(t.Context(), "other", "unrelated")
	must(t, err)
	must(t, s.Close())

	s = w.start()
	p := s.Poisoned()
	if len(p) != 1 || p[0].Instance.ID != inst.ID || !slices.Equal(p[0].Users, []string{"box"}) {
		t.Fatalf("poisoned: %+v", p)
	}
	if log := w.log.String(); !strings.Contains(log, "restart them") || !strings.Contains(log, "box") || strings.Contains(log, "other") {
		t.Errorf("log:\n%s", log)
	}
	if _, err := readUncached(f, 50_000); !errors.Is(err, unix.EIO) {
		t.Errorf("the old mount: %v, want EIO", err)
	}
	if _, err := readUncached(f, 0); !errors.Is(err, unix.EIO) {
		t.Errorf("the old mount, where it has read zeros: %v, want EIO", err)
	}
	now, err := s.layers.Get(inst.ID)
	must(t, err)
	if !now.Partial() {
		t.Errorf("%+v", now)
	}
	before := w.demand.mounts
	mounts, err = s.Prepare(t.Context(), "new", top)
	wantContent(t, filepath.Join(mounted(t, mounts, err), "one"), string(lazyFile("one")))
	if w.demand.mounts != before+1 {
		t.Error("the new mount was not announced")
	}
	must(t, checkConsistent(t.Context(), s))

	// Still in use.
	must(t, s.Cleanup(t.Context()))
	if len(s.Poisoned()) != 1 || len(orphansOf(t, s)) != 1 {
		t.Errorf("%+v, orphans %q", s.Poisoned(), orphansOf(t, s))
	}
}

// TestPoisonedGo: poisoned files go when the last who reads from them has ended, and so do the names.
func TestPoisonedGo(t *testing.T) {
	w := newLazyWorld(t)
	s := w.start()
	top, _ := w.pullLazily(s, lazyLayer(t))
	mounts, err := s.View(t.Context(), "view", top)
	must(t, err)
	f, err := os.Open(filepath.Join(mounts[0].Source, "two"))
	must(t, err)
	defer f.Close()
	must(t, s.Close())
	s = w.start()
	must(t, s.Cleanup(t.Context()))
	if p := s.Poisoned(); len(p) != 1 || !slices.Equal(p[0].Users, []string{"view"}) {
		t.Fatalf("poisoned: %+v", p)
	}
	must(t, s.Close())

	// The next processes know it, and say it again unless they are one of many.
	for i, brief := range []bool{false, true, true, false} {
		if i > 0 {
			must(t, s.Close())
		}
		w.log.Reset()
		o := w.options()
		o.Brief = brief
		s = start(t, o)
		if p := s.Poisoned(); len(p) != 1 || !slices.Equal(p[0].Users, []string{"view"}) {
			t.Errorf("poisoned: %+v", p)
		}
		if said := strings.Count(w.log.String(), "restart them"); (said == 1) == brief || said > 1 || said == 1 && !strings.Contains(w.log.String(), "snapshots=[view]") {
			t.Errorf("brief %v; log:\n%s", brief, w.log)
		}
	}
	must(t, f.Close())
	if len(s.Poisoned()) != 1 {
		t.Errorf("poisoned: %+v", s.Poisoned())
	}
	must(t, s.Cleanup(t.Context()))
	if p := s.Poisoned(); len(p) > 0 || len(orphansOf(t, s)) > 0 {
		t.Errorf("poisoned: %+v, orphans %q", p, orphansOf(t, s))
	}
	if left := list(filepath.Join(w.root, "removing")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestNotPoisoned: what was answered for, is not mounted, or is complete, is left alone.
func TestNotPoisoned(t *testing.T) {
	for name, prepare := range map[string]func(w *lazyWorld, s *Snapshotter, top string, id layerstore.ID){
		"watched": func(w *lazyWorld, s *Snapshotter, top string, id layerstore.ID) {
			_, err := s.Prepare(t.Context(), "box", top)
			must(t, err)
			w.demand.watches[string(id)] = true
		},
		"unmounted": func(w *lazyWorld, s *Snapshotter, top string, _ layerstore.ID) {
			_, err := s.Prepare(t.Context(), "box", top)
			must(t, err)
			unmountBelow(t, w.root)
		},
		"complete": func(_ *lazyWorld, s *Snapshotter, top string, id layerstore.ID) {
			inst, err := s.layers.Get(id)
			must(t, err)
			must(t, s.layers.SetComplete(inst))
			_, err = s.Prepare(t.Context(), "box", top)
			must(t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newLazyWorld(t)
			s := w.start()
			top, inst := w.pullLazily(s, lazyLayer(t))
			prepare(w, s, top, inst.ID)
			before, err := os.Stat(s.layers.DataPath(inst.ID))
			must(t, err)
			must(t, s.Close())
			s = w.start()
			after, err := os.Stat(s.layers.DataPath(inst.ID))
			must(t, err)
			if len(s.Poisoned()) > 0 || !os.SameFile(before, after) || after.Size() != inst.DataBytes {
				t.Errorf("poisoned: %+v, %d bytes, had %d", s.Poisoned(), after.Size(), before.Size())
			}
		})
	}
}

// TestUndecided: while it is not known who answers, nothing is poisoned, cut or deleted, and nothing partial is mounted; everything else works. When it
// is known, what nobody answers for is poisoned, and the rest is mounted again.
func TestUndecided(t *testing.T) {
	for name, watched := range map[string]bool{"watched": true, "lost": false} {
		t.Run(name, func(t *testing.T) {
			w := newLazyWorld(t)
			s := w.start()
			top, inst := w.pullLazily(s, lazyLayer(t))
			mounts, err := s.View(t.Context(), "box", top)
			opened(t, mounts, err, "one")
			pull(t, s, "unrelated", "", "file", "x")
			orphan := filepath.Join(w.root, "orphans", "o")
			must(t, os.Mkdir(orphan, 0o700)) // nobody reads from it
			must(t, s.Close())

			w.demand.unsure = errTest
			s = w.start()
			data, err := os.Stat(s.layers.DataPath(inst.ID))
			must(t, err)
			if len(s.Poisoned()) > 0 || data.Size() != inst.DataBytes || len(orphansOf(t, s)) != 1 {
				t.Errorf("poisoned: %+v, %d bytes, orphans %q", s.Poisoned(), data.Size(), orphansOf(t, s))
			}
			if !strings.Contains(w.log.String(), "until the keeper answers") {
				t.Errorf("log:\n%s", w.log)
			}
			if _, err := s.Prepare(t.Context(), "new", top); !errors.Is(err, errTest) {
				t.Errorf("a new mount: %v", err)
			}
			if _, err := s.Mounts(t.Context(), "box"); !errors.Is(err, errTest) {
				t.Errorf("the old mount: %v", err)
			}
			mounts, err = s.Prepare(t.Context(), "other", "unrelated")
			mounted(t, mounts, err)
			must(t, s.RenewPoisoned(t.Context())) // nothing is known yet
			if len(s.Poisoned()) > 0 {
				t.Errorf("poisoned: %+v", s.Poisoned())
			}

			w.demand.unsure = nil
			w.demand.watches[string(inst.ID)] = watched
			if _, err := s.Mounts(t.Context(), "box"); err == nil {
				t.Error("the old mount is handed out before it is known whether it is poisoned")
			}
			must(t, s.RenewPoisoned(t.Context()))
			if p := s.Poisoned(); (len(p) == 0) != watched || len(p) > 0 && !slices.Contains(p[0].Users, "box") {
				t.Errorf("poisoned: %+v", p)
			}
			if left := orphansOf(t, s); len(left) != len(s.Poisoned()) {
				t.Errorf("orphans %q", left)
			}
			now, err := os.Stat(s.layers.DataPath(inst.ID))
			must(t, err)
			if os.SameFile(data, now) != watched {
				t.Error("the files are the same, or other ones, and should not be")
			}
			_, err = s.Mounts(t.Context(), "box")
			must(t, err)
			must(t, s.RenewPoisoned(t.Context())) // does nothing
		})
	}
}

// TestCompletesMeanwhile: what becomes complete while it is decided what is poisoned, and so is not watched any more, is not.
func TestCompletesMeanwhile(t *testing.T) {
	w := newLazyWorld(t)
	s := w.start()
	top, inst := w.pullLazily(s, lazyLayer(t))
	mounts, err := s.Prepare(t.Context(), "box", top)
	mounted(t, mounts, err)
	must(t, s.Close())
	w.demand.unsure = errTest
	s = w.start()
	w.demand.unsure = nil
	w.demand.asked = func(string) { must(t, s.layers.SetComplete(inst)) }
	must(t, s.RenewPoisoned(t.Context()))
	if data, err := os.Stat(s.layers.DataPath(inst.ID)); len(s.Poisoned()) > 0 || err != nil || data.Size() != inst.DataBytes {
		t.Errorf("poisoned: %+v; %+v, %v", s.Poisoned(), data, err)
	}
	w.demand.asked = nil
}

// TestOrphansAtStart: an orphan that is served is left alone; one that is not, and is read from, is poisoned; one that nobody reads from goes.
func TestOrphansAtStart(t *testing.T) {
	for name, c := range map[string]struct {
		mounted, served bool
		complete        bool
		poisoned, there bool
	}{
		"served":   {mounted: true, served: true, there: true},
		"lost":     {mounted: true, poisoned: true, there: true},
		"complete": {mounted: true, complete: true}, // the watch had ended, and so did the daemon
		"unused":   {},
		"waiting":  {served: true, there: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newLazyWorld(t)
			s := w.start()
			top, inst := w.pullLazily(s, lazyLayer(t))
			if c.complete {
				w.fillFile(s, inst, lazyFile("one"))
				w.fillFile(s, inst, lazyFile("two"))
			}
			var reader *os.File
			if c.mounted {
				mounts, err := s.View(t.Context(), "view", top)
				reader = opened(t, mounts, err, "one")
				must(t, s.Remove(t.Context(), "view"))
			}
			must(t, s.Remove(t.Context(), top))
			must(t, s.Cleanup(t.Context()))
			dirs := orphansOf(t, s)
			if len(dirs) != 1 || !slices.Equal(w.left, dirs) {
				t.Fatalf("orphans %q, told of %q", dirs, w.left)
			}
			must(t, s.Close())
			w.demand.serves[dirs[0]] = c.served

			for i := range 2 { // mount commands: the second has nothing new to say
				w.log.Reset()
				o := w.options()
				o.Brief = true
				s = start(t, o)
				if p := s.Poisoned(); (len(p) == 1) != c.poisoned || len(p) > 0 && p[0].Instance.ID != inst.ID {
					t.Errorf("poisoned: %+v", p)
				}
				if said := strings.Contains(w.log.String(), "restart them"); said != (c.poisoned && i == 0) {
					t.Errorf("log of command %d:\n%s", i, w.log)
				}
				must(t, s.Close())
			}
			if c.complete {
				if p, err := readUncached(reader, 0); err != nil || !bytes.Equal(p, lazyFile("one")[:len(p)]) {
					t.Errorf("a container that misses nothing read %x..., %v", p[:8], err)
				}
			}
			fi, err := os.Stat(filepath.Join(dirs[0], blob.DataName))
			if there := err == nil; there != c.there || there && (fi.Size() == 0) != c.poisoned {
				t.Errorf("the data: %v, %v", fi, err)
			}
		})
	}
}

// TestPoisonedAndDamaged: files that cannot be made new ones of do not keep the daemon from starting; the layer is fetched again.
func TestPoisonedAndDamaged(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"table":  func(dir string) error { return os.Truncate(filepath.Join(dir, blob.ExtentsName), 50) },
		"record": func(dir string) error { return os.WriteFile(filepath.Join(dir, blob.PresentName), []byte("x"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newLazyWorld(t)
			s := w.start()
			top, inst := w.pullLazily(s, lazyLayer(t))
			mounts, err := s.Prepare(t.Context(), "box", top)
			f := opened(t, mounts, err, "two")
			must(t, s.Close())
			must(t, damage(s.layers.Dir(inst.ID)))

			s = w.start()
			if p := s.Poisoned(); len(p) != 1 || !slices.Equal(p[0].Users, []string{"box"}) {
				t.Errorf("poisoned: %+v", p)
			}
			if _, err := readUncached(f, 50_000); !errors.Is(err, unix.EIO) {
				t.Errorf("the old mount: %v, want EIO", err)
			}
			mounts, err = s.Prepare(t.Context(), "new", top)
			mounted(t, mounts, err)
			must(t, checkConsistent(t.Context(), s))
		})
	}
}

// TestPoisonedWithoutOnDemand: without anybody who could answer, nothing partial is mounted, and the error says why.
func TestPoisonedWithoutOnDemand(t *testing.T) {
	w := newLazyWorld(t)
	s := w.start()
	top, _ := w.pullLazily(s, lazyLayer(t))
	must(t, s.Close())
	o := w.options()
	o.OnDemand = nil
	s = start(t, o)
	if _, err := s.Prepare(t.Context(), "box", top); err == nil || !strings.Contains(err.Error(), "on demand is off") {
		t.Errorf("got %v", err)
	}
}

// TestGone: an orphan that nobody reads from any more is deleted, once.
func TestGone(t *testing.T) {
	w := newLazyWorld(t)
	s := w.start()
	top, _ := w.pullLazily(s, lazyLayer(t))
	must(t, s.Remove(t.Context(), top))
	must(t, s.Cleanup(t.Context()))
	dirs := orphansOf(t, s)
	if len(dirs) != 1 {
		t.Fatalf("orphans %q", dirs)
	}
	s.Gone(dirs[0])
	s.Gone(dirs[0])
	must(t, s.layers.DeleteDiscarded())
	if left := append(orphansOf(t, s), list(filepath.Join(w.root, "removing"))...); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if strings.Contains(w.log.String(), "not deleted") {
		t.Errorf("log:\n%s", w.log)
	}
}

// TestCompleteWhileItIsMounted: an instance may become complete, and be closed, between the look at it and its mount.
func TestCompleteWhileItIsMounted(t *testing.T) {
	w := newLazyWorld(t)
	s := w.start()
	top, inst := w.pullLazily(s, lazyLayer(t))
	w.fillFile(s, inst, lazyFile("one"))
	w.fillFile(s, inst, lazyFile("two"))
	w.demand.mount = func(string) (*Answering, error) {
		must(t, s.layers.SetComplete(inst))
		return nil, errors.New("not open")
	}
	mounts, err := s.Prepare(t.Context(), "box", top)
	wantContent(t, filepath.Join(mounted(t, mounts, err), "two"), string(lazyFile("two")))
}

// TestCheckFails: a mount that does not pass its check is not there afterwards, and the next one is checked again.
func TestCheckFails(t *testing.T) {
	w := newLazyWorld(t)
	s := w.start()
	top, inst := w.pullLazily(s, lazyLayer(t))
	checks := 0
	w.demand.mount = func(string) (*Answering, error) {
		return &Answering{Check: func(root string) error {
			checks++
			if names := list(root); !slices.Equal(names, []string{"one", "two"}) {
				t.Errorf("the check sees %q", names)
			}
			return errTest
		}}, nil
	}
	for range 2 {
		if _, err := s.Prepare(t.Context(), "box", top); !errors.Is(err, errTest) {
			t.Errorf("got %v", err)
		}
	}
	if checks != 2 {
		t.Errorf("%d checks", checks)
	}
	if points, err := fsbackend.MountsBelow(w.root); err != nil || len(points) > 0 {
		t.Errorf("mounted: %q, %v", points, err)
	}
	if _, err := s.layers.Get(inst.ID); err != nil {
		t.Error(err)
	}
}

var errTest = errors.New("made by a test")
