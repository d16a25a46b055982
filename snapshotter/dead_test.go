package snapshotter

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// TestAskedFor: an instance that the kernel asks for by its id loses its mount when it is removed, and its files when it is not asked for any more.
func TestAskedFor(t *testing.T) {
	w := newLazyWorld(t)
	s := w.start()
	top, inst := w.pullLazily(s, lazyLayer(t))
	mounts, err := s.View(t.Context(), "view", top)
	must(t, err)
	w.demand.live = map[string]bool{string(inst.ID): true}
	must(t, s.Remove(t.Context(), "view"))
	must(t, s.Remove(t.Context(), top))
	for range 2 {
		must(t, s.Cleanup(t.Context()))
		if _, err := s.layers.Get(inst.ID); err != nil || len(orphansOf(t, s)) > 0 {
			t.Errorf("it has left the store: %v, orphans %q", err, orphansOf(t, s))
		}
		if mounted, err := fsbackend.Mounted(mounts[0].Source); mounted || err != nil {
			t.Errorf("mounted: %v, %v", mounted, err)
		}
	}
	// While the keeper has not said whether it has a cache, all caches may be alive.
	w.demand.live, w.demand.dead, w.demand.unsure = nil, map[string]bool{string(inst.ID): true}, errors.New("the keeper does not answer")
	must(t, s.Cleanup(t.Context()))
	if _, err := s.layers.Get(inst.ID); err != nil {
		t.Errorf("it has left the store although its cache may be alive: %v", err)
	}
	w.demand.dead, w.demand.unsure = nil, nil
	w.demand.live = map[string]bool{string(inst.ID): true}
	// Pulled again, it is there, and is mounted elsewhere: an fsid can be used once.
	top, again := w.pullLazily(s, lazyLayer(t))
	other, err := s.View(t.Context(), "view", top)
	must(t, err)
	if again.ID != inst.ID || other[0].Source == mounts[0].Source {
		t.Errorf("instance %s, then %s; mounts %+v, then %+v", inst.ID, again.ID, mounts, other)
	}
	must(t, s.Remove(t.Context(), "view"))
	must(t, s.Remove(t.Context(), top))
	w.demand.live = nil
	must(t, s.Cleanup(t.Context()))
	if _, err := s.layers.Get(inst.ID); err == nil {
		t.Error("it is still there")
	}
}

// TestDeadMounts: mounts over a cache that has gone are taken away at start, and made again for new containers; users of the old ones are named
// until they have gone, by later processes too.
func TestDeadMounts(t *testing.T) {
	w := newLazyWorld(t)
	s := w.start()
	top, inst := w.pullLazily(s, lazyLayer(t))
	mounts, err := s.View(t.Context(), "view", top)
	must(t, err)
	must(t, s.Close())

	w.demand.watches[string(inst.ID)] = false
	o := w.options()
	o.Stale = func(dir string) ([]string, error) {
		if dir != filepath.Join(w.root, "m") {
			t.Errorf("asked about %s", dir)
		}
		return []string{mounts[0].Source, filepath.Join(dir, "not-a-number!")}, nil
	}
	w.demand.dead = map[string]bool{string(inst.ID): true}
	fsbackend.Unmount(mounts[0].Source) // so that the test's mount, which is alive, is not taken for a poisoned one
	s = start(t, o)
	wantUsers := func() {
		t.Helper()
		if p := s.Poisoned(); len(p) != 1 || p[0].Instance.ID != inst.ID || !slices.Equal(p[0].Users, []string{"view"}) {
			t.Errorf("to be restarted: %+v", p)
		}
	}
	wantUsers()
	if len(orphansOf(t, s)) > 0 || !strings.Contains(w.log.String(), "snapshots=[view]") {
		t.Errorf("orphans %q; log:\n%s", orphansOf(t, s), w.log)
	}
	again, err := s.Mounts(t.Context(), "view")
	must(t, err)
	if names := list(again[0].Source); !slices.Equal(names, []string{"one", "two"}) {
		t.Errorf("mounted again: %q", names)
	}
	must(t, s.Close())
	fsbackend.Unmount(again[0].Source)

	o.Stale = func(string) ([]string, error) { return nil, nil }
	s = start(t, o)
	must(t, s.Cleanup(t.Context()))
	wantUsers()
	w.demand.dead = nil
	must(t, s.Cleanup(t.Context()))
	if p := s.Poisoned(); len(p) > 0 {
		t.Errorf("to be restarted: %+v", p)
	}
}

// TestCacheLost: mounts that die while the daemon runs are taken away at once; who was using them is known until they have gone.
func TestCacheLost(t *testing.T) {
	w := newLazyWorld(t)
	o := w.options()
	var stale []string
	o.Stale = func(string) ([]string, error) { return stale, nil }
	s := start(t, o)
	top, inst := w.pullLazily(s, lazyLayer(t))
	mounts, err := s.View(t.Context(), "view", top)
	must(t, err)

	stale, w.demand.dead = []string{mounts[0].Source}, map[string]bool{string(inst.ID): true}
	must(t, s.CacheLost(t.Context()))
	stale = nil
	if mounted, err := fsbackend.Mounted(mounts[0].Source); err != nil || mounted {
		t.Errorf("still mounted: %t, %v", mounted, err)
	}
	if p := s.Poisoned(); len(p) != 1 || !slices.Equal(p[0].Users, []string{"view"}) {
		t.Errorf("to be restarted: %+v", p)
	}
	again, err := s.Mounts(t.Context(), "view")
	must(t, err)
	if names := list(again[0].Source); !slices.Equal(names, []string{"one", "two"}) {
		t.Errorf("mounted again: %q", names)
	}
	w.demand.dead = nil
	must(t, s.Cleanup(t.Context()))
	if _, noted, err := layerstore.Users(filepath.Join(w.root, "layers", string(inst.ID))); len(s.Poisoned()) > 0 || noted || err != nil {
		t.Errorf("to be restarted: %+v, noted %t, %v", s.Poisoned(), noted, err)
	}
}
