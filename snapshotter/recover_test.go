package snapshotter

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// TestPowerCutAfterCommit: the metadata is on disk, the rename of the upper directory is not.
func TestPowerCutAfterCommit(t *testing.T) {
	root := newRoot(t)
	s := start(t, immediate(root))
	_, err := s.Prepare(t.Context(), "active", "")
	must(t, err)
	upper := activeUpper(t, s, "active")
	must(t, os.WriteFile(filepath.Join(upper, "file"), []byte("content"), 0o600))
	must(t, s.Commit(t.Context(), "committed", "active"))
	dir := instanceOf(t, s, "committed").ID
	must(t, s.Close())
	must(t, os.Rename(s.layers.DirPath(dir), upper))
	must(t, os.RemoveAll(filepath.Dir(s.layers.DirPath(dir))))

	s = start(t, immediate(root))
	must(t, checkConsistent(t.Context(), s))
	convertAll(t, s)
	mounts, err := s.View(t.Context(), "view", "committed")
	wantContent(t, filepath.Join(mounted(t, mounts, err), "file"), "content")
}

// TestPowerCutAfterPrepare: the metadata is on disk, the directories are not.
func TestPowerCutAfterPrepare(t *testing.T) {
	root := newRoot(t)
	s := start(t, immediate(root))
	_, err := s.Prepare(t.Context(), "active", "")
	must(t, err)
	_, err = s.View(t.Context(), "nothing", "")
	must(t, err)
	must(t, s.Close())
	must(t, os.RemoveAll(s.snapshotDir(1)))
	must(t, os.RemoveAll(s.snapshotDir(2)))
	s = start(t, immediate(root))
	must(t, checkConsistent(t.Context(), s))
	must(t, s.Commit(t.Context(), "committed", "active"))
	mounts, err := s.Mounts(t.Context(), "nothing")
	mounted(t, mounts, err)
}

// TestUndeletable: a file that a container made immutable keeps nothing but itself.
func TestUndeletable(t *testing.T) {
	root := newRoot(t)
	s := start(t, immediate(root))
	commit(t, s, "image", "", oneFile(t, "file", "content"))
	path := filepath.Join(s.layers.DirPath(instanceOf(t, s, "image").ID), "file")
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	setFlags := func(flags int) error { return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags) }
	testenv.Need(t, testenv.Feature{Name: "immutable-files", Missing: func() error {
		return setFlags(0x10) // FS_IMMUTABLE_FL
	}})
	defer setFlags(0)
	must(t, s.Remove(t.Context(), "image"))
	if err := s.Cleanup(t.Context()); err == nil {
		t.Error("an immutable file was deleted")
	}
	must(t, s.Close())

	s = start(t, immediate(root))
	pull(t, s, "image", "", "file", "content")
	must(t, s.Remove(t.Context(), "image"))
	if err := s.Cleanup(t.Context()); err == nil {
		t.Error("what is left is not reported")
	}
	must(t, checkConsistent(t.Context(), s))
}

// TestDamagedLayer: a layer whose files were damaged is not handed out, and is whole again when it was imported again.
func TestDamagedLayer(t *testing.T) {
	root := newRoot(t)
	s := start(t, immediate(root))
	inst := pull(t, s, "image", "", "file", "content")
	_, err := s.Prepare(t.Context(), "container", "image")
	must(t, err)
	stale := mountOf(t, s, "image")
	must(t, s.Close())
	must(t, os.Truncate(s.layers.DataPath(inst.ID), 1))

	s = start(t, immediate(root))
	if mounted, err := fsbackend.Mounted(stale); err != nil || mounted {
		t.Errorf("the damaged layer is still mounted: %v", err)
	}
	for name, err := range map[string]error{
		"mounts":  second(s.Mounts(t.Context(), "container")),
		"prepare": second(s.Prepare(t.Context(), "other", "image")),
	} {
		if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), string(inst.ID)) {
			t.Errorf("%s on a damaged layer: %v", name, err)
		}
	}
	_, pin := importTar(t, s, "file", "content")
	pin.Release()
	mounts, err := s.Mounts(t.Context(), "container")
	wantContent(t, filepath.Join(mounted(t, mounts, err), "file"), "content")
}

func second[T any](_ T, err error) error { return err }

// TestForeignRecords: what in our bucket does not belong to containerd's is repaired.
func TestForeignRecords(t *testing.T) {
	root := newRoot(t)
	s := start(t, immediate(root))
	commit(t, s, "image", "", oneFile(t, "file", "content"))
	inst := instanceOf(t, s, "image")
	must(t, s.update(t.Context(), func(_ context.Context, r *records) error {
		if err := r.put(77, record{Lowers: []layerstore.ID{inst.ID}}); err != nil {
			return err
		}
		return r.refs.Delete(refKey(inst.ID, 1))
	}))
	must(t, s.Close())
	must(t, os.Mkdir(filepath.Join(root, "m", "zz"), 0o700))
	must(t, fsbackend.BindReadOnly(t.TempDir(), filepath.Join(root, "m", "zz")))
	must(t, os.MkdirAll(filepath.Join(root, "snapshots", "99", "upper"), 0o700))

	s = start(t, immediate(root))
	must(t, checkConsistent(t.Context(), s))
	if _, err := s.View(t.Context(), "view", "image"); err != nil {
		t.Error(err)
	}
}

func TestNewerMetadataIsRefused(t *testing.T) {
	root := newRoot(t)
	s := start(t, immediate(root))
	must(t, s.update(t.Context(), func(_ context.Context, r *records) error {
		return r.tx.Bucket(bucketRoot).Put(keyVersion, []byte("2"))
	}))
	must(t, s.Close())
	if _, err := New(t.Context(), immediate(root)); err == nil || !strings.Contains(err.Error(), `version "2"`) {
		t.Errorf("opened metadata of another version: %v", err)
	}
}

func TestRootPaths(t *testing.T) {
	for _, root := range []string{"", "/tmp/a:b", "/tmp/a,b", `/tmp/a\b`} {
		if _, err := checkRoot(root); err == nil {
			t.Errorf("root %q is accepted", root)
		}
	}
	root := filepath.Join(t.TempDir(), "root")
	must(t, os.Mkdir(root, 0o755))
	_, err := checkRoot(root)
	must(t, err)
	fi, err := os.Stat(root)
	must(t, err)
	if fi.Mode().Perm() != 0o700 {
		t.Errorf("root has mode %o, want 700", fi.Mode().Perm())
	}
}
