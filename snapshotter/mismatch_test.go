package snapshotter

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestMismatch: a layer whose index lies. New containers get what its tar says, those that run keep what they have, and are named.
func TestMismatch(t *testing.T) {
	w := newLazyWorld(t)
	s := w.start()
	liar := lazyLayer(t).Swapped(t, "one", "two")
	top, inst := w.pullLazily(s, liar)
	mounts, err := s.Prepare(t.Context(), "box", top)
	mounted(t, mounts, err)
	s.Mismatched(t.Context(), inst.ID, errTest)
	if log := w.log.String(); !strings.Contains(log, "snapshots=[box]") || !strings.Contains(log, errTest.Error()) {
		t.Errorf("log:\n%s", log)
	}
	if now, err := s.layers.Get(inst.ID); err != nil || now.Lazy.Mismatch != errTest.Error() {
		t.Errorf("%+v, %v", now.Lazy, err)
	}
	// Nobody has looked yet.
	if _, err := s.Prepare(t.Context(), "early", top); err == nil || !strings.Contains(err.Error(), errTest.Error()) || !strings.Contains(err.Error(), "do not use this image") {
		t.Errorf("a container of it: %v", err)
	}

	_, err = s.restoreAll(t.Context())
	must(t, err)
	whole := instanceOf(t, s, top)
	if whole.ID == inst.ID || whole.Lazy != nil || whole.Layer != liar.Digest || whole.DiffID != liar.DiffID {
		t.Errorf("replaced by %+v", whole)
	}
	mounts, err = s.Prepare(t.Context(), "new", top)
	dir := mounted(t, mounts, err)
	wantContent(t, filepath.Join(dir, "one"), string(lazyFile("one")))
	wantContent(t, filepath.Join(dir, "two"), string(lazyFile("two")))
	if rec := recordOf(t, s, "box"); len(rec.Lowers) != 1 || rec.Lowers[0] != inst.ID {
		t.Errorf("the lowers of the old container have changed: %+v", rec)
	}
	if _, err := s.Mounts(t.Context(), "box"); err != nil {
		t.Errorf("mounts of the old container: %v", err)
	}
	must(t, checkConsistent(t.Context(), s))

	// The same image once more.
	must(t, s.Remove(t.Context(), "new"))
	if again := pullRemote(t, s, inNamespace(t, "k8s.io"), w.image(liar)); again != top {
		t.Errorf("pulled as %s, was %s", again, top)
	}
	if n := w.registry.fetched; n != 1 {
		t.Errorf("fetched %d times", n)
	}
}

// TestMismatchIsRemembered: also after a restart nobody gets the liar, and the whole is made again when it is lost.
func TestMismatchIsRemembered(t *testing.T) {
	w := newLazyWorld(t)
	s := w.start()
	top, inst := w.pullLazily(s, lazyLayer(t).Swapped(t, "one", "two"))
	s.Mismatched(t.Context(), inst.ID, errTest)
	must(t, s.Close())

	s = w.start()
	if _, err := s.Prepare(t.Context(), "early", top); err == nil {
		t.Error("a container of it")
	}
	_, err := s.restoreAll(t.Context())
	must(t, err)
	whole := instanceOf(t, s, top)
	must(t, s.Close())
	powerCut(t, s, whole)

	s = w.start()
	mounts, err := s.Prepare(t.Context(), "new", top)
	wantContent(t, filepath.Join(mounted(t, mounts, err), "one"), string(lazyFile("one")))
	must(t, checkConsistent(t.Context(), s))
}

// TestMismatchWithoutHope: a layer that is another one than the configuration says has no better form. There are no new containers of it, with an
// error that says why, and it is not fetched again and again.
func TestMismatchWithoutHope(t *testing.T) {
	w := newLazyWorld(t)
	s := w.start()
	liar := lazyLayer(t)
	liar.DiffID = digest.FromString("another image's layer")
	top, inst := w.pullLazily(s, liar)
	s.Mismatched(t.Context(), inst.ID, errTest)
	for i := range 3 {
		if _, err := s.restoreAll(t.Context()); i == 0 && (err == nil || !strings.Contains(err.Error(), liar.DiffID.String())) {
			t.Errorf("replaced: %v", err)
		}
		must(t, s.Cleanup(t.Context())) // nobody refers to what was made
	}
	if _, err := s.Prepare(t.Context(), "box", top); err == nil || !strings.Contains(err.Error(), errTest.Error()) || !strings.Contains(err.Error(), liar.Digest.String()) {
		t.Errorf("a container of it: %v", err)
	}
	if n := w.registry.fetched; n != 1 {
		t.Errorf("fetched %d times", n)
	}
	must(t, checkConsistent(t.Context(), s))
	// Everything else goes on.
	pull(t, s, "unrelated", "", "file", "x")
	mounts, err := s.Prepare(t.Context(), "other", "unrelated")
	wantContent(t, filepath.Join(mounted(t, mounts, err), "file"), "x")
}

// TestMismatchLater: what cannot be replaced now is replaced when it can be.
func TestMismatchLater(t *testing.T) {
	w := newLazyWorld(t)
	s := w.start()
	liar := lazyLayer(t).Swapped(t, "one", "two")
	top, inst := w.pullLazily(s, liar)
	delete(w.registry.blobs, liar.Digest)
	s.Mismatched(t.Context(), inst.ID, errTest)
	if _, err := s.restoreAll(t.Context()); err == nil || !strings.Contains(err.Error(), liar.Digest.String()) {
		t.Errorf("replaced: %v", err)
	}
	w.registry.blobs[liar.Digest] = liar.Blob
	_, err := s.restoreAll(t.Context())
	must(t, err)
	if instanceOf(t, s, top).ID == inst.ID {
		t.Error("not replaced")
	}
}

// TestMismatchIsReplacedSoon: it is what Run does next.
func TestMismatchIsReplacedSoon(t *testing.T) {
	w := newLazyWorld(t)
	s := w.start()
	top, inst := w.pullLazily(s, lazyLayer(t).Swapped(t, "one", "two"))
	run(t, s)
	time.Sleep(10 * time.Millisecond) // so that it has nothing to do
	s.Mismatched(t.Context(), inst.ID, errTest)
	for deadline := time.Now().Add(30 * time.Second); instanceOf(t, s, top).ID == inst.ID; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not replaced")
		}
	}
}

// TestMismatchOfNothing: who finds out too late does no harm.
func TestMismatchOfNothing(t *testing.T) {
	w := newLazyWorld(t)
	s := w.start()
	top, inst := w.pullLazily(s, lazyLayer(t))
	must(t, s.Remove(t.Context(), top))
	must(t, s.Cleanup(t.Context()))
	s.Mismatched(t.Context(), inst.ID, errors.New("too late"))
	_, err := s.restoreAll(t.Context())
	must(t, err)
	if w.registry.fetched > 0 {
		t.Error("fetched")
	}
}
