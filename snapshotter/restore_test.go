package snapshotter

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// memoryContent is a content store with one namespace.
type memoryContent map[digest.Digest][]byte

func (m memoryContent) Open(ctx context.Context, layer ocispec.Descriptor) (io.ReadCloser, error) {
	namespace, _ := namespaces.Namespace(ctx)
	b, ok := m[layer.Digest]
	if !ok || namespace != "default" {
		return nil, fmt.Errorf("layer %s in namespace %q: %w", layer.Digest, namespace, errdefs.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (m memoryContent) Document(_ context.Context, name digest.Digest) ([]byte, map[string]string, error) {
	b, ok := m[name]
	if !ok {
		return nil, nil, errdefs.ErrNotFound
	}
	// Everything was fetched from one repository.
	return b, map[string]string{"containerd.io/distribution.source.registry.example": "app"}, nil
}

// add stores a layer of files as tarOf takes them.
func (m memoryContent) add(t *testing.T, files ...string) ocispec.Descriptor {
	b := tarOf(t, files...)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(b), Size: int64(len(b))}
	m[desc.Digest] = b
	return desc
}

// powerCut makes an instance what it may be when the machine went down before it was synced: the record says so, and the contents of
// the files are lost.
func powerCut(t *testing.T, s *Snapshotter, inst layerstore.Instance) {
	t.Helper()
	unmountBelow(t, s.root)
	record := strings.TrimSuffix(s.layers.MetaPath(inst.ID), "meta.erofs") + "layer.json"
	b, err := os.ReadFile(record)
	must(t, err)
	b = bytes.Replace(b, []byte("{"), []byte(`{"unsynced": true,`), 1)
	must(t, os.WriteFile(record, b, 0o600))
	must(t, os.WriteFile(s.layers.DataPath(inst.ID), make([]byte, inst.DataBytes), 0o600))
}

// TestRestoreAfterAPowerCut: a layer that was not synced when the machine went down is never mounted, and made again when it is needed:
// for an active snapshot that was there before, and for one that is made on it.
func TestRestoreAfterAPowerCut(t *testing.T) {
	opts := immediate(newRoot(t))
	content := memoryContent{}
	opts.Content = content
	opts.Layers.SyncAfter = true
	big := strings.Repeat("what must not become zeros ", 1000)
	desc := content.add(t, "lost", big)
	s := start(t, opts)
	pull(t, s, "base", "", "kept", "k")
	inst := pullFrom(t, s, desc, "top", "base", "lost", big)
	mounts, err := s.Prepare(t.Context(), "container", "top")
	wantContent(t, mounted(t, mounts, err)+"/lost", big)
	unmountBelow(t, opts.Root)
	must(t, s.Close())

	powerCut(t, s, inst)
	s = start(t, opts)
	if _, err := s.layers.Get(inst.ID); err == nil {
		t.Fatal("an instance that was not synced is still there")
	}
	mounts, err = s.Mounts(t.Context(), "container")
	dir := mounted(t, mounts, err)
	wantContent(t, dir+"/lost", big)
	wantContent(t, dir+"/kept", "k")
	must(t, checkConsistent(t.Context(), s))
	must(t, s.Close())

	powerCut(t, s, inst)
	s = start(t, opts)
	mounts, err = s.Prepare(t.Context(), "another", "top")
	wantContent(t, mounted(t, mounts, err)+"/lost", big)
	must(t, s.Close())

	// Damage of another kind.
	unmountBelow(t, opts.Root)
	must(t, os.Truncate(s.layers.DataPath(inst.ID), 0))
	s = start(t, opts)
	mounts, err = s.View(t.Context(), "view", "top")
	wantContent(t, mounted(t, mounts, err)+"/lost", big)
}

// TestRestoreLater: what cannot be made again is an error that says what to do, and the next call tries again. Snapshots without that
// layer are not concerned.
func TestRestoreLater(t *testing.T) {
	opts := immediate(newRoot(t))
	content := memoryContent{}
	opts.Content = content
	desc := content.add(t, "lost", "content")
	s := start(t, opts)
	pull(t, s, "base", "", "kept", "k")
	inst := pullFrom(t, s, desc, "top", "base", "lost", "content")
	must(t, s.Close())
	blob := content[desc.Digest]
	delete(content, desc.Digest)

	powerCut(t, s, inst)
	s = start(t, opts)
	if _, err := s.Prepare(t.Context(), "container", "top"); !errdefs.IsNotFound(err) {
		t.Fatalf("prepared on a layer that is lost: %v", err)
	}
	mounts, err := s.Prepare(t.Context(), "other", "base")
	wantContent(t, mounted(t, mounts, err)+"/kept", "k")
	content[desc.Digest] = blob
	mounts, err = s.Prepare(t.Context(), "container", "top")
	wantContent(t, mounted(t, mounts, err)+"/lost", "content")
}

// TestSourceGoesWithItsInstance: what is kept about an instance is not kept for ever.
func TestSourceGoesWithItsInstance(t *testing.T) {
	opts := immediate(newRoot(t))
	content := memoryContent{}
	opts.Content = content
	s := start(t, opts)
	inst := pullFrom(t, s, content.add(t, "file", "x"), "top", "", "file", "x")
	known := func() (ok bool) {
		must(t, s.view(t.Context(), func(_ context.Context, r *records) error { _, ok = r.source(inst.ID); return nil }))
		return ok
	}
	if !known() {
		t.Error("the source is not known")
	}
	must(t, s.Remove(t.Context(), "top"))
	must(t, s.Cleanup(t.Context()))
	if known() {
		t.Error("the source is still known")
	}
}

// TestRestoreFromAnotherNamespace: the namespace that brought the layer last may have dropped it.
func TestRestoreFromAnotherNamespace(t *testing.T) {
	opts := immediate(newRoot(t))
	content := memoryContent{}
	opts.Content = content
	desc := content.add(t, "lost", "content")
	s := start(t, opts)
	inst := pullFrom(t, s, desc, "top", "", "lost", "content")
	must(t, s.update(t.Context(), func(_ context.Context, r *records) error {
		return r.putSource(inst.ID, source{Namespace: "other", Layer: desc})
	}))
	must(t, s.Close())

	powerCut(t, s, inst)
	s = start(t, opts)
	if _, err := s.Prepare(t.Context(), "nobody", "top"); !errdefs.IsNotFound(err) {
		t.Errorf("without a namespace that has it: %v", err)
	}
	mounts, err := s.Prepare(namespaces.WithNamespace(t.Context(), "default"), "container", "top")
	wantContent(t, mounted(t, mounts, err)+"/lost", "content")
}

// TestRestoreInTheBackground: Run makes lost layers again, so that a request with a short deadline need not.
func TestRestoreInTheBackground(t *testing.T) {
	opts := immediate(newRoot(t))
	content := memoryContent{}
	opts.Content = content
	desc := content.add(t, "lost", "content")
	s := start(t, opts)
	inst := pullFrom(t, s, desc, "top", "", "lost", "content")
	must(t, s.Close())

	powerCut(t, s, inst)
	s = start(t, opts)
	run(t, s)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := s.layers.Get(inst.ID); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("not made again")
		}
	}
}

// TestLostIsUnmounted: what the disk did not take is not what new containers get.
func TestLostIsUnmounted(t *testing.T) {
	s := start(t, immediate(newRoot(t)))
	inst := pull(t, s, "top", "", "file", "x")
	_, err := s.View(t.Context(), "view", "top")
	must(t, err)
	var dir string
	must(t, s.view(t.Context(), func(_ context.Context, r *records) error {
		n, _ := r.mountNumber(inst.ID)
		dir = s.mountDir(n)
		return nil
	}))
	if mounted, err := fsbackend.Mounted(dir); err != nil || !mounted {
		t.Fatalf("mounted: %v, %v", mounted, err)
	}
	s.lost(inst.ID)
	if mounted, err := fsbackend.Mounted(dir); err != nil || mounted {
		t.Errorf("mounted: %v, %v", mounted, err)
	}
}
