package snapshotter

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// du is what a tree takes on disk, in bytes, as the program of that name says.
func du(t testing.TB, path string) int64 {
	t.Helper()
	testenv.Need(t, testenv.Tool("du"))
	out, err := exec.Command("du", "-s", "-k", path).Output() // busybox has no option for bytes, and blocks are not smaller
	must(t, err)
	var n int64
	_, err = fmt.Sscan(string(out), &n)
	must(t, err)
	return n << 10
}

// duOf is what an instance takes.
func duOf(t testing.TB, s *Snapshotter, id layerstore.ID) int64 {
	t.Helper()
	return du(t, filepath.Join(s.root, "layers", string(id)))
}

// wantUsageLikeDu compares the sum of the usage of all committed snapshots with what the layers take.
func wantUsageLikeDu(t *testing.T, s *Snapshotter) {
	t.Helper()
	var sum int64
	must(t, s.Walk(t.Context(), func(ctx context.Context, info snapshots.Info) error {
		if info.Kind != snapshots.KindCommitted {
			return nil
		}
		u, err := s.Usage(ctx, info.Name)
		sum += u.Size
		return err
	}))
	want := du(t, filepath.Join(s.root, "layers"))
	t.Logf("usage %d, du %d", sum, want)
	if diff := max(sum-want, want-sum); diff > want/50 {
		t.Errorf("the snapshots are charged %d bytes, the layers take %d", sum, want)
	}
}

// pullLayout makes the snapshots of an image in an OCI layout, the way containerd does with our differ. Names begin with prefix.
func pullLayout(t *testing.T, s *Snapshotter, layout, prefix string) {
	t.Helper()
	var index ocispec.Index
	readJSON(t, filepath.Join(layout, "index.json"), &index)
	var manifest ocispec.Manifest
	readJSON(t, blobPath(layout, index.Manifests[0].Digest), &manifest)
	parent := ""
	for i, layer := range manifest.Layers {
		name := fmt.Sprint(prefix, " ", i)
		commitLayer(t, s, name, parent, layer.Digest, func(context.Context) (io.ReadCloser, error) {
			return os.Open(blobPath(layout, layer.Digest))
		})
		parent = name
	}
}

// commitLayer makes a committed snapshot of a layer.
func commitLayer(t *testing.T, s *Snapshotter, name, parent string, layer digest.Digest, open layerstore.Opener) {
	t.Helper()
	mounts, err := s.Prepare(t.Context(), "extract "+name, parent)
	must(t, err)
	id, ok := s.ActiveSnapshot(t.Context(), mounts)
	if !ok {
		t.Fatalf("mounts %v are not recognized", mounts)
	}
	inst, pin, err := s.layers.Import(t.Context(), layer, open)
	must(t, err)
	defer pin.Release()
	must(t, s.Bind(t.Context(), id, inst.ID, ocispec.Descriptor{}))
	must(t, s.Commit(t.Context(), name, "extract "+name))
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	must(t, json.Unmarshal(b, v))
}

func blobPath(layout string, d digest.Digest) string {
	return filepath.Join(layout, "blobs", d.Algorithm().String(), d.Encoded())
}

// TestUsageOfImages has images that share layers, each pulled twice, and one of them removed.
func TestUsageOfImages(t *testing.T) {
	s := start(t, immediate(newRoot(t)))
	for _, image := range []string{"nginx-gzip", "node-gzip", "busybox-gzip", "pause-gzip", "nginx-zstd"} {
		testenv.Need(t, lab.Image(image))
		for _, namespace := range []string{"one", "two"} {
			pullLayout(t, s, lab.Layout(image), namespace+" "+image)
		}
		wantUsageLikeDu(t, s)
	}
	for i := range 3 { // from the top
		must(t, s.Remove(t.Context(), fmt.Sprint("one nginx-gzip ", 2-i)))
	}
	must(t, s.Cleanup(t.Context()))
	wantUsageLikeDu(t, s)
}

// TestUsageOfSmallLayers: where a layer is a few blocks, its directory and layer.json count.
func TestUsageOfSmallLayers(t *testing.T) {
	for _, syncAfter := range []bool{false, true} {
		opts := immediate(newRoot(t))
		opts.Layers.SyncAfter = syncAfter
		s := start(t, opts)
		parent := ""
		for i := range 60 {
			name := fmt.Sprint(i)
			pull(t, s, name, parent, "file", name)
			parent = name
		}
		wantUsageLikeDu(t, s)
	}
}

// TestUsageOfDirectories: a directory that a container lies on is charged after it was converted, too, and not to the container.
func TestUsageOfDirectories(t *testing.T) {
	s := start(t, immediate(newRoot(t)))
	commit(t, s, "image", "", func(dir string) {
		for i := range 200 {
			must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), make([]byte, 10_000), 0o600))
		}
	})
	wantUsageLikeDu(t, s)
	_, err := s.Prepare(t.Context(), "container", "image")
	must(t, err)
	convertAll(t, s)
	must(t, s.Cleanup(t.Context()))
	if got := len(s.layers.List()); got != 2 {
		t.Fatalf("%d instances, want the directory and the image", got)
	}
	wantUsageLikeDu(t, s)
	if u, err := s.Usage(t.Context(), "container"); err != nil || u.Size > 64<<10 {
		t.Errorf("a container that has written nothing is charged %d bytes, %v", u.Size, err)
	}
	must(t, s.Remove(t.Context(), "container"))
	must(t, s.Cleanup(t.Context()))
	wantUsageLikeDu(t, s)
}
