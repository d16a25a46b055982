package snapshotter

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// importTar imports a layer of files, which are given as name, content, name, content...
func importTar(t testing.TB, s *Snapshotter, files ...string) (layerstore.Instance, layerstore.Pin) {
	t.Helper()
	b := tarOf(t, files...)
	inst, pin, err := s.Layers().Import(t.Context(), digest.FromBytes(b), func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b)), nil
	})
	must(t, err)
	return inst, pin
}

// tarOf returns a tar of regular files, given as name, content, name, content, ...
func tarOf(t testing.TB, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for f := range slices.Chunk(files, 2) {
		must(t, w.WriteHeader(&tar.Header{Name: f[0], Mode: 0o644, Size: int64(len(f[1])), Typeflag: tar.TypeReg}))
		_, err := io.WriteString(w, f[1])
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// pull makes a committed snapshot the way containerd does with our differ.
func pull(t testing.TB, s *Snapshotter, name, parent string, files ...string) layerstore.Instance {
	t.Helper()
	return pullFrom(t, s, ocispec.Descriptor{}, name, parent, files...)
}

// pullFrom is pull of a layer that can be found again by its descriptor.
func pullFrom(t testing.TB, s *Snapshotter, layer ocispec.Descriptor, name, parent string, files ...string) layerstore.Instance {
	t.Helper()
	mounts, err := s.Prepare(t.Context(), "extract "+name, parent)
	must(t, err)
	id, ok := s.ActiveSnapshot(t.Context(), mounts)
	if !ok {
		t.Fatalf("mounts %v are not recognized", mounts)
	}
	inst, pin := importTar(t, s, files...)
	must(t, s.Bind(namespaces.WithNamespace(t.Context(), "default"), id, inst.ID, layer))
	pin.Release()
	must(t, s.Commit(t.Context(), name, "extract "+name))
	return inst
}

// TestUsageOfWhatMoves: between the look into the metadata and the look at the disk the snapshot is committed, or converted.
func TestUsageOfWhatMoves(t *testing.T) {
	s := start(t, immediate(newRoot(t)))
	_, err := s.Prepare(t.Context(), "active", "")
	must(t, err)
	var meanwhile func()
	step.Hook = func(name string) {
		if change := meanwhile; name == "usage/known" && change != nil {
			meanwhile = nil
			change()
		}
	}
	defer func() { step.Hook = nil }()
	meanwhile = func() { must(t, s.Commit(t.Context(), "committed", "active")) }
	if _, err := s.Usage(t.Context(), "active"); !errdefs.IsNotFound(err) {
		t.Errorf("usage of a snapshot that is committed meanwhile: %v", err)
	}
	meanwhile = func() {
		convertAll(t, s)
		must(t, s.Cleanup(t.Context()))
	}
	u, err := s.Usage(t.Context(), "committed")
	must(t, err)
	if u.Size == 0 {
		t.Errorf("usage of a snapshot that is converted meanwhile: %+v", u)
	}
}

func TestUsageIsChargedOnce(t *testing.T) {
	s := start(t, immediate(newRoot(t)))
	content := string(bytes.Repeat([]byte("x"), 100_000))
	inst := pull(t, s, "one", "", "file", content)
	if again := pull(t, s, "two", "", "file", content); again.ID != inst.ID {
		t.Fatalf("the same layer became instances %s and %s", inst.ID, again.ID)
	}
	usage := func(key string) (size, inodes int64) {
		t.Helper()
		u, err := s.Usage(t.Context(), key)
		must(t, err)
		return u.Size, u.Inodes
	}
	if size, inodes := usage("one"); size != duOf(t, s, inst.ID) || size < 100_000 || inodes != 4 {
		t.Errorf("the first snapshot is charged %d bytes and %d inodes, the instance takes %d and 4", size, inodes, duOf(t, s, inst.ID))
	}
	if size, inodes := usage("two"); size != 0 || inodes != 1 {
		t.Errorf("the second snapshot is charged %d bytes and %d inodes, want 0 and 1", size, inodes)
	}
	must(t, s.Remove(t.Context(), "one"))
	if size, _ := usage("two"); size != duOf(t, s, inst.ID) {
		t.Errorf("after the first has gone the second is charged %d bytes, want %d", size, duOf(t, s, inst.ID))
	}

	_, err := s.Prepare(t.Context(), "active", "two")
	must(t, err)
	before, _ := usage("active")
	must(t, os.WriteFile(filepath.Join(activeUpper(t, s, "active"), "new"), make([]byte, 50_000), 0o600))
	if after, inodes := usage("active"); after-before < 50_000 || inodes != 2 {
		t.Errorf("an active snapshot with 50000 bytes more is charged %d more and has %d inodes", after-before, inodes)
	}
	must(t, s.Commit(t.Context(), "three", "active"))
	if size, _ := usage("three"); size < 50_000 {
		t.Errorf("a directory of 50000 bytes is charged %d", size)
	}
	convertAll(t, s)
	must(t, s.Cleanup(t.Context()))
	if size, _ := usage("three"); size != duOf(t, s, instanceOf(t, s, "three").ID) {
		t.Errorf("a converted directory is charged %d bytes", size)
	}
}

// activeUpper returns the upper directory of an active snapshot.
func activeUpper(t testing.TB, s *Snapshotter, key string) string {
	t.Helper()
	var upper string
	must(t, s.view(t.Context(), func(ctx context.Context, _ *records) error {
		id, _, err := snapshotKind(ctx, key)
		upper = s.upperDir(id)
		return err
	}))
	return upper
}

func TestBindAndCommit(t *testing.T) {
	s := start(t, immediate(newRoot(t)))
	commit(t, s, "base", "", oneFile(t, "base", "base"))
	mounts, err := s.Prepare(t.Context(), "key", "base")
	must(t, err)
	id, ok := s.ActiveSnapshot(t.Context(), mounts)
	if !ok {
		t.Fatal("own mounts are not recognized")
	}
	inst, pin := importTar(t, s, "file", "content")
	defer pin.Release()
	must(t, s.Bind(t.Context(), id, inst.ID, ocispec.Descriptor{}))
	must(t, s.Bind(t.Context(), id, inst.ID, ocispec.Descriptor{})) // again is no error
	other, otherPin := importTar(t, s, "file", "other")
	defer otherPin.Release()
	if err := s.Bind(t.Context(), id, other.ID, ocispec.Descriptor{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("binding a second layer: %v, want failed precondition", err)
	}

	mounts, err = s.Mounts(t.Context(), "key")
	dir := mounted(t, mounts, err)
	wantContent(t, filepath.Join(dir, "file"), "content")
	wantContent(t, filepath.Join(dir, "base"), "base")
	if again, ok := s.ActiveSnapshot(t.Context(), mounts); !ok || again != id {
		t.Errorf("mounts of a snapshot with a layer are recognized as %q, %v", again, ok)
	}

	stray := filepath.Join(activeUpper(t, s, "key"), "stray")
	must(t, os.WriteFile(stray, nil, 0o600))
	if err := s.Commit(t.Context(), "name", "key"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("commit of a layer with files written beside it: %v, want failed precondition", err)
	}
	must(t, os.Remove(stray))
	must(t, s.Commit(t.Context(), "name", "key"))
	if got := instanceOf(t, s, "name"); got.ID != inst.ID {
		t.Errorf("committed instance %s, want %s", got.ID, inst.ID)
	}
	if err := s.Bind(t.Context(), id, inst.ID, ocispec.Descriptor{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("binding to a committed snapshot: %v, want failed precondition", err)
	}
}

func TestActiveSnapshotRefusesForeignMounts(t *testing.T) {
	s := start(t, immediate(newRoot(t)))
	commit(t, s, "base", "", oneFile(t, "base", "base"))
	view, err := s.View(t.Context(), "view", "base")
	must(t, err)
	nothing, err := s.View(t.Context(), "nothing", "")
	must(t, err)
	active, err := s.Prepare(t.Context(), "active", "")
	must(t, err)
	upper := active[0].Source
	for name, mounts := range map[string][]mount.Mount{
		"no mount":        nil,
		"two mounts":      {active[0], active[0]},
		"view":            view,
		"view of nothing": nothing,
		"below upper":     {{Type: "bind", Source: filepath.Join(upper, "x")}},
		"work directory":  {{Type: "bind", Source: filepath.Join(filepath.Dir(upper), "work")}},
		"unknown id":      {{Type: "bind", Source: filepath.Join(s.root, "snapshots", "999", "upper")}},
		"padded id":       {{Type: "bind", Source: filepath.Join(s.root, "snapshots", "0"+filepath.Base(filepath.Dir(upper)), "upper")}},
		"other root":      {{Type: "bind", Source: "/somewhere/snapshots/1/upper"}},
		"overlay":         {{Type: "overlay", Source: upper, Options: []string{"lowerdir=" + upper}}},
	} {
		if id, ok := s.ActiveSnapshot(t.Context(), mounts); ok {
			t.Errorf("%s: taken for active snapshot %s", name, id)
		}
	}
	if _, ok := s.ActiveSnapshot(t.Context(), active); !ok {
		t.Error("an active snapshot without a parent is not recognized")
	}
}

// TestSameLayerTwice has a stack that overlayfs refuses (ELOOP) as it is.
func TestSameLayerTwice(t *testing.T) {
	s := start(t, immediate(newRoot(t)))
	pull(t, s, "1", "", "file", "A")
	pull(t, s, "2", "1", "file", "B", "b", "B")
	pull(t, s, "3", "2", "file", "A")
	if lowers := prepareLowers(t, s, "child", "3"); lowers != 2 {
		t.Errorf("%d lowers, want 2", lowers)
	}
	mounts, err := s.Mounts(t.Context(), "child")
	dir := mounted(t, mounts, err)
	wantContent(t, filepath.Join(dir, "file"), "A")
	wantContent(t, filepath.Join(dir, "b"), "B")
}

func TestOpaqueRoot(t *testing.T) {
	s := start(t, immediate(newRoot(t)))
	commit(t, s, "hidden", "", oneFile(t, "hidden", ""))
	_, err := s.Prepare(t.Context(), "active", "hidden")
	must(t, err)
	upper := activeUpper(t, s, "active")
	must(t, unix.Setxattr(upper, "trusted.overlay.opaque", []byte("y"), 0))
	must(t, os.WriteFile(filepath.Join(upper, "seen"), nil, 0o600))
	must(t, s.Commit(t.Context(), "opaque", "active"))

	check := func(key string) {
		t.Helper()
		if lowers := prepareLowers(t, s, key, "opaque"); lowers != 1 {
			t.Errorf("%d lowers, want 1", lowers)
		}
		mounts, err := s.Mounts(t.Context(), key)
		if got := list(mounted(t, mounts, err)); !slices.Equal(got, []string{"seen"}) {
			t.Errorf("%s shows %v", key, got)
		}
	}
	check("on directory")
	convertAll(t, s)
	if !instanceOf(t, s, "opaque").OpaqueRoot {
		t.Error("the mark was lost in the conversion")
	}
	check("on image")
}

func prepareLowers(t testing.TB, s *Snapshotter, key, parent string) int {
	t.Helper()
	_, err := s.Prepare(t.Context(), key, parent)
	must(t, err)
	return len(recordOf(t, s, key).Lowers)
}
