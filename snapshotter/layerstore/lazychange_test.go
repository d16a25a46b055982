package layerstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
)

// TestLazyChanges: what is noted about an instance is there after a restart.
func TestLazyChanges(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	l := lazyLayer(t)
	made := lazily(t, s, l)
	id := made.ID
	for i := range maxImages + 3 {
		must(t, s.AddImage(id, fmt.Sprintf("h%d.example/app:1", i)))
	}
	must(t, s.AddImage(id, ""))
	must(t, s.SetMismatch(id, errTest))
	must(t, s.SetComplete(made))
	check := func(mismatch string) {
		t.Helper()
		now, err := s.Get(id)
		must(t, err)
		if now.Partial() || now.Lazy.Mismatch != mismatch || len(now.Lazy.Images) != maxImages || now.Lazy.Images[0] != "registry.example/app:1" {
			t.Errorf("%+v", now.Lazy)
		}
		if later, err := open(t, root).Get(id); err != nil || !reflect.DeepEqual(later, now) {
			t.Errorf("after a restart %+v, %+v, %v; want %+v, %+v", later, later.Lazy, err, now, now.Lazy)
		}
	}
	check(errTest.Error())
	must(t, s.SetVerified(id, l.DiffID, 12345))
	check("")
	now, err := s.Get(id)
	must(t, err)
	if now.DiffID != l.DiffID || now.DiffBytes != 12345 || now.Lazy.Verified.IsZero() {
		t.Errorf("%+v, %+v", now, now.Lazy)
	}
	// What others hold is not changed.
	before, err := s.Get(id)
	must(t, err)
	must(t, s.SetMismatch(id, errTest))
	if before.Lazy.Mismatch != "" {
		t.Error("a copy has changed")
	}
}

// TestLazyChangesOfOthers: what is not lazy, or not there, has nothing to be noted about.
func TestLazyChangesOfOthers(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	b, dgst := layer(t, "content")
	inst, pin, err := s.Import(t.Context(), dgst, opener(b))
	must(t, err)
	pin.Release()
	l := lazyLayer(t)
	gone := lazily(t, s, l)
	must(t, s.Discard(gone.ID))
	for _, one := range []Instance{inst, gone} {
		id := one.ID
		must(t, errors.Join(s.AddImage(id, "x"), s.SetComplete(one), s.SetVerified(id, l.DiffID, 1), s.SetMismatch(id, errTest)))
	}
	if now, err := s.Get(inst.ID); err != nil || !reflect.DeepEqual(now, inst) {
		t.Errorf("%+v, %v", now, err)
	}
	if len(s.List()) != 1 {
		t.Errorf("%+v", s.List())
	}
}

// TestCompleteIsAnother: an instance that was made again is not complete because the one before it was.
func TestCompleteIsAnother(t *testing.T) {
	s := open(t, t.TempDir())
	l := lazyLayer(t)
	old := lazily(t, s, l)
	must(t, s.Discard(old.ID))
	again := lazily(t, s, l)
	must(t, s.SetComplete(old))
	if now, err := s.Get(again.ID); err != nil || !now.Partial() {
		t.Errorf("%+v, %v", now, err)
	}
	must(t, s.SetComplete(again))
	if now, err := s.Get(again.ID); err != nil || now.Partial() {
		t.Errorf("%+v, %v", now, err)
	}
}

// TestChangeCutShort: what a crash left of a change does not keep later ones from being made.
func TestChangeCutShort(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	inst := lazily(t, s, lazyLayer(t))
	must(t, s.Close())
	must(t, os.WriteFile(filepath.Join(s.Dir(inst.ID), nextRecordName), []byte(`{"version": 1, "id`), 0o600))
	s = open(t, root)
	if err := s.SetComplete(inst); err != nil {
		t.Fatal(err)
	}
	if now, err := open(t, root).Get(inst.ID); err != nil || now.Partial() {
		t.Errorf("%+v, %v", now, err)
	}
}

// TestChangeOfWhatIsReplaced: the instance goes and is made anew while something is noted about it. The new one is what it is: above all, it
// is not complete because the other was.
func TestChangeOfWhatIsReplaced(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	l := lazyLayer(t)
	old := lazily(t, s, l)
	replaced := false
	step.Hook = func(name string) {
		if name == "layerstore/lazy/changing" {
			step.Hook = nil
			must(t, s.Discard(old.ID))
			lazily(t, s, l)
			replaced = true
		}
	}
	defer func() { step.Hook = nil }()
	must(t, s.SetComplete(old))
	if !replaced {
		t.Fatal("the step was not reached")
	}
	for when, s := range map[string]*Store{"now": s, "after a restart": open(t, root)} {
		if inst, err := s.Get(old.ID); err != nil || !inst.Partial() {
			t.Errorf("%s: %+v, %v", when, inst, err)
		}
	}
	must(t, s.AddImage(old.ID, "other.example/app:1")) // nothing is left in the way
}

// TestChangeCrash: a change is there, or it is not.
func TestChangeCrash(t *testing.T) {
	s := open(t, t.TempDir())
	l := lazyLayer(t)
	made := lazily(t, s, l)
	id := made.ID
	steps := crashes(t, s, func() { must(t, s.SetComplete(made)) }, func(at string, crashed *Store) {
		if inst, err := crashed.Get(id); err != nil || !inst.Partial() {
			t.Errorf("crash at %s: %+v, %v", at, inst, err)
		}
		must(t, crashed.SetComplete(made))
		if left := names(t, crashed.Dir(id)); slices.Contains(left, nextRecordName) {
			t.Errorf("crash at %s: left %q", at, left)
		}
	})
	if len(steps) == 0 {
		t.Error("no steps")
	}
}
