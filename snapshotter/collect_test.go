package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/file"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

type ctx = context.Context

func TestFrozenLowersDoNotChange(t *testing.T) {
	s := start(t, immediate(newRoot(t)))
	commit(t, s, "base", "", oneFile(t, "file", "content"))
	dir := instanceOf(t, s, "base")
	if dir.Kind != layerstore.Directory {
		t.Fatalf("committed as %s", dir.Kind)
	}
	before, err := s.Prepare(t.Context(), "old", "base")
	must(t, err)
	convertAll(t, s)
	image := instanceOf(t, s, "base")
	if image.Kind != layerstore.EROFS {
		t.Fatalf("converted to %s", image.Kind)
	}
	after, err := s.Mounts(t.Context(), "old")
	must(t, err)
	if fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("mounts changed from %v to %v", before, after)
	}
	mounts, err := s.Prepare(t.Context(), "new", "base")
	wantContent(t, filepath.Join(mounted(t, mounts, err), "file"), "content")
	if got := recordOf(t, s, "new").Lowers[0]; got != image.ID {
		t.Errorf("a new snapshot is on %s, want the image %s", got, image.ID)
	}

	must(t, s.Cleanup(t.Context()))
	if _, err := s.layers.Get(dir.ID); err != nil {
		t.Errorf("the directory has gone while a snapshot is on it: %v", err)
	}
	must(t, s.Remove(t.Context(), "old"))
	must(t, s.Cleanup(t.Context()))
	if _, err := s.layers.Get(dir.ID); !errdefs.IsNotFound(err) {
		t.Errorf("the directory is still there: %v", err)
	}
	must(t, checkConsistent(t.Context(), s))
}

// TestDirectoriesUnderALiveOverlayAreKept: snapshots are removed while a container still runs on them.
func TestDirectoriesUnderALiveOverlayAreKept(t *testing.T) {
	s := start(t, immediate(newRoot(t)))
	commit(t, s, "base", "", oneFile(t, "lower", "lower"))
	mounts, err := s.Prepare(t.Context(), "container", "base")
	must(t, err)
	dir := t.TempDir()
	must(t, mount.All(mounts, dir))
	defer mount.UnmountAll(dir, 0)
	must(t, os.WriteFile(filepath.Join(dir, "upper"), []byte("upper"), 0o600))

	must(t, s.Remove(t.Context(), "container"))
	must(t, s.Remove(t.Context(), "base"))
	must(t, s.Cleanup(t.Context()))
	must(t, dropCaches())
	wantContent(t, filepath.Join(dir, "lower"), "lower")
	wantContent(t, filepath.Join(dir, "upper"), "upper")
	must(t, os.WriteFile(filepath.Join(dir, "more"), nil, 0o600))

	must(t, mount.UnmountAll(dir, 0))
	must(t, s.Cleanup(t.Context()))
	must(t, checkConsistent(t.Context(), s))
	for _, sub := range []string{"layers", "m", "snapshots"} {
		if left := list(filepath.Join(s.root, sub)); len(left) > 0 {
			t.Errorf("%s: left: %v", sub, left)
		}
	}
}

// TestDirectoriesUnderALiveBindMountAreKept: without two directories to stack, the mount of a snapshot is a bind mount.
func TestDirectoriesUnderALiveBindMountAreKept(t *testing.T) {
	s := start(t, immediate(newRoot(t)))
	commit(t, s, "base", "", oneFile(t, "file", "content"))
	mounts, err := s.View(t.Context(), "view", "base")
	view := t.TempDir()
	must(t, err)
	must(t, mount.All(mounts, view))
	defer mount.UnmountAll(view, 0)
	mounts, err = s.Prepare(t.Context(), "active", "")
	active := t.TempDir()
	must(t, err)
	must(t, mount.All(mounts, active))
	defer mount.UnmountAll(active, 0)
	must(t, os.WriteFile(filepath.Join(active, "file"), []byte("content"), 0o600))

	for _, key := range []string{"view", "base", "active"} {
		must(t, s.Remove(t.Context(), key))
	}
	must(t, s.Cleanup(t.Context()))
	wantContent(t, filepath.Join(view, "file"), "content")
	wantContent(t, filepath.Join(active, "file"), "content")

	must(t, mount.UnmountAll(view, 0))
	must(t, mount.UnmountAll(active, 0))
	must(t, s.Cleanup(t.Context()))
	must(t, checkConsistent(t.Context(), s))
}

// TestRemoveAndPullAgainUnderALiveOverlay is the removal of an image whose container runs.
func TestRemoveAndPullAgainUnderALiveOverlay(t *testing.T) {
	s := start(t, immediate(newRoot(t)))
	content := make([]byte, 4<<20)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	first := pull(t, s, "image", "", "file", string(content))
	mounts, err := s.Prepare(t.Context(), "container", "image")
	must(t, err)
	dir := t.TempDir()
	must(t, mount.All(mounts, dir))
	defer mount.UnmountAll(dir, 0)

	must(t, s.Remove(t.Context(), "container"))
	must(t, s.Remove(t.Context(), "image"))
	must(t, s.Cleanup(t.Context()))
	if _, err := os.Stat(s.layers.MetaPath(first.ID)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the files are still there: %v", err)
	}
	if again := pull(t, s, "image", "", "file", string(content)); again.ID != first.ID {
		t.Fatalf("instance %s, want %s again", again.ID, first.ID)
	}
	fresh, err := s.Prepare(t.Context(), "second", "image")
	other := mounted(t, fresh, err)
	must(t, dropCaches())
	for _, d := range []string{dir, other} {
		got, err := os.ReadFile(filepath.Join(d, "file"))
		must(t, err)
		if !bytes.Equal(got, content) {
			t.Errorf("wrong bytes through %s", d)
		}
	}
	must(t, mount.UnmountAll(dir, 0))
	must(t, s.Cleanup(t.Context()))
	must(t, checkConsistent(t.Context(), s))
}

// dropCaches makes the next reads come from the files.
func dropCaches() error {
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0)
}

func TestGrace(t *testing.T) {
	s := start(t, Options{Root: newRoot(t), Backend: file.New(file.Options{}), Grace: time.Hour})
	inst := pull(t, s, "image", "", "file", "content")
	find := func(after time.Duration) (g garbage) {
		t.Helper()
		must(t, s.view(t.Context(), func(c ctx, r *records) (err error) {
			g, err = s.findGarbage(c, r, time.Now().Add(after), 0)
			return err
		}))
		return g
	}
	if g := find(0); len(g.instances) != 0 {
		t.Errorf("a layer in use is garbage: %v", g)
	}
	must(t, s.Remove(t.Context(), "image"))
	must(t, s.Cleanup(t.Context())) // the grace begins
	if g := find(59 * time.Minute); len(g.instances) != 0 || g.next > time.Minute {
		t.Errorf("before the end of the grace: %+v", g)
	}
	if g := find(61 * time.Minute); len(g.instances) != 1 || g.instances[0].ID != inst.ID {
		t.Errorf("after the end of the grace: %+v", g)
	}
	pull(t, s, "image", "", "file", "content") // wanted again
	if g := find(62 * time.Minute); len(g.instances) != 0 {
		t.Errorf("a layer that is wanted again is garbage: %v", g)
	}
	must(t, s.Remove(t.Context(), "image"))
	if g := find(2 * time.Hour); len(g.instances) != 0 {
		t.Errorf("the second grace did not begin anew: %v", g)
	}
	_, pin := importTar(t, s, "file", "content")
	if g := find(24 * time.Hour); len(g.instances) != 0 {
		t.Errorf("a pinned layer is garbage: %v", g)
	}
	pin.Release()
}

func TestRunConvertsAndCollects(t *testing.T) {
	s := start(t, Options{Root: newRoot(t), Backend: file.New(file.Options{}), Grace: 10 * time.Millisecond})
	run(t, s)
	commit(t, s, "base", "", oneFile(t, "file", "content"))
	eventually(t, func() bool { return instanceOf(t, s, "base").Kind == layerstore.EROFS })
	eventually(t, func() bool { return len(s.layers.List()) == 1 })
	must(t, s.Remove(t.Context(), "base"))
	eventually(t, func() bool { return len(list(filepath.Join(s.root, "layers"))) == 0 })
	eventually(t, func() bool { return len(list(filepath.Join(s.root, "m"))) == 0 })
}

// eventually waits for what another goroutine does; the limit is only there so that a failure ends.
func eventually(t testing.TB, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("did not happen within a minute")
		}
	}
}

// stuckBackend is a backend whose Mount waits, or fails.
type stuckBackend struct {
	fsbackend.Backend
	entered chan struct{}
	release chan error
}

func (b stuckBackend) Mount(context.Context, fsbackend.Image, string) error {
	b.entered <- struct{}{}
	return <-b.release
}

// TestNothingWaitsForAMount: a mount that hangs holds up only who wants that layer.
func TestNothingWaitsForAMount(t *testing.T) {
	backend := stuckBackend{file.New(file.Options{}), make(chan struct{}), make(chan error)}
	s := start(t, Options{Root: newRoot(t), Backend: backend, Grace: -1})
	pull(t, s, "stuck", "", "file", "content")
	result := make(chan error)
	go func() {
		_, err := s.Prepare(context.Background(), "container", "stuck")
		result <- err
	}()
	<-backend.entered
	_, err := s.Prepare(t.Context(), "other", "")
	must(t, err)
	must(t, s.Commit(t.Context(), "committed", "other"))
	must(t, s.Remove(t.Context(), "committed"))
	must(t, s.Remove(t.Context(), "container"))
	must(t, s.Remove(t.Context(), "stuck"))
	backend.release <- errors.New("mount refused")
	if err := <-result; err == nil {
		t.Error("Prepare succeeded without a mount")
	}
	must(t, s.Cleanup(t.Context()))
	must(t, checkConsistent(t.Context(), s))
}

func TestFailedMountRemovesTheSnapshot(t *testing.T) {
	backend := stuckBackend{file.New(file.Options{}), make(chan struct{}, 1), make(chan error, 1)}
	s := start(t, Options{Root: newRoot(t), Backend: backend, Grace: -1})
	pull(t, s, "image", "", "file", "content")
	backend.release <- errors.New("mount refused")
	if _, err := s.Prepare(t.Context(), "container", "image"); err == nil {
		t.Fatal("Prepare succeeded without a mount")
	}
	if _, err := s.Stat(t.Context(), "container"); !errdefs.IsNotFound(err) {
		t.Errorf("the snapshot is there: %v", err)
	}
	must(t, s.Cleanup(t.Context()))
	must(t, checkConsistent(t.Context(), s))
}

// TestFailedMountAndReusedKey: while the mount was waited for, the snapshot was removed and its key given to another one.
func TestFailedMountAndReusedKey(t *testing.T) {
	backend := stuckBackend{file.New(file.Options{}), make(chan struct{}), make(chan error)}
	s := start(t, Options{Root: newRoot(t), Backend: backend, Grace: -1})
	pull(t, s, "image", "", "file", "content")
	result := make(chan error)
	go func() {
		_, err := s.Prepare(context.Background(), "key", "image")
		result <- err
	}()
	<-backend.entered
	must(t, s.Remove(t.Context(), "key"))
	_, err := s.Prepare(t.Context(), "key", "")
	must(t, err)
	backend.release <- errors.New("mount refused")
	if err := <-result; err == nil || errdefs.IsNotFound(err) {
		t.Errorf("Prepare without a mount: %v", err)
	}
	if _, err := s.Stat(t.Context(), "key"); err != nil {
		t.Errorf("the other snapshot: %v", err)
	}
}

func TestRefusedCommitChangesNothing(t *testing.T) {
	s := start(t, immediate(newRoot(t)))
	commit(t, s, "taken", "", oneFile(t, "file", "old"))
	_, err := s.Prepare(t.Context(), "active", "")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(activeUpper(t, s, "active"), "file"), []byte("new"), 0o600))
	for name, want := range map[string]func(error) bool{"taken": errdefs.IsAlreadyExists, "orphan": errdefs.IsNotFound} {
		var opts []snapshots.Opt
		if name == "orphan" {
			opts = append(opts, snapshots.WithParent("missing"))
		}
		if err := s.Commit(t.Context(), name, "active", opts...); !want(err) {
			t.Errorf("commit as %s: %v", name, err)
		}
		mounts, err := s.Mounts(t.Context(), "active")
		wantContent(t, filepath.Join(mounted(t, mounts, err), "file"), "new")
	}
	if _, err := s.View(t.Context(), "view", "taken"); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), "x", "view"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("commit of a view: %v", err)
	}
	must(t, s.Cleanup(t.Context()))
	must(t, checkConsistent(t.Context(), s))
}

// TestCommitThatFailsAtItsEnd: the upper directory was renamed already.
func TestCommitThatFailsAtItsEnd(t *testing.T) {
	s := start(t, immediate(newRoot(t)))
	_, err := s.Prepare(t.Context(), "active", "")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(activeUpper(t, s, "active"), "file"), []byte("content"), 0o600))
	caller, giveUp := context.WithCancel(t.Context())
	step.Hook = func(name string) {
		if name == "commit/adopted" {
			giveUp()
		}
	}
	defer func() { step.Hook = nil }()
	if err := s.Commit(caller, "committed", "active"); !errors.Is(err, context.Canceled) {
		t.Errorf("commit: %v", err)
	}
	wantContent(t, filepath.Join(activeUpper(t, s, "active"), "file"), "content")
	must(t, s.Cleanup(t.Context()))
	must(t, checkConsistent(t.Context(), s))
}

// TestWalkMayChangeThings: a function that is called inside of a transaction could not.
func TestWalkMayChangeThings(t *testing.T) {
	s := start(t, immediate(newRoot(t)))
	if err := s.Walk(t.Context(), func(context.Context, snapshots.Info) error { return errors.New("called") }); err != nil {
		t.Errorf("walk of nothing: %v", err)
	}
	for i := range 10 {
		_, err := s.Prepare(t.Context(), fmt.Sprint(i), "")
		must(t, err)
	}
	must(t, s.Walk(t.Context(), func(c context.Context, info snapshots.Info) error { return s.Remove(c, info.Name) }))
}

func TestRootIsLocked(t *testing.T) {
	t.Parallel() // it waits
	opts := immediate(newRoot(t))
	start(t, opts)
	if s, err := New(t.Context(), opts); err == nil {
		s.Close()
		t.Error("two snapshotters have one root")
	}
}
