package differ

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// imageSource is a Source that knows an image, whose first layer is read slowly.
type imageSource struct {
	*blobs
	layers []ocispec.Descriptor
	slow   chan struct{} // reads of the first layer wait for it

	mu    sync.Mutex
	reads map[digest.Digest]int
}

func (s *imageSource) Above(ctx context.Context, layer digest.Digest) ([]ocispec.Descriptor, error) {
	if namespace, _ := namespaces.Namespace(ctx); namespace != "default" {
		return nil, fmt.Errorf("namespace %q", namespace)
	}
	for i, l := range s.layers {
		if l.Digest == layer {
			return slices.Clone(s.layers[i+1:]), nil
		}
	}
	return nil, nil
}

func (s *imageSource) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	r, err := s.blobs.Open(ctx, desc)
	if err != nil {
		return nil, err
	}
	return &countedOpen{ReadCloser: r, ctx: ctx, source: s, layer: desc.Digest}, nil
}

type countedOpen struct {
	io.ReadCloser
	ctx    context.Context
	source *imageSource
	layer  digest.Digest
	read   bool
}

func (r *countedOpen) Read(b []byte) (int, error) {
	if r.layer == r.source.layers[0].Digest {
		select {
		case <-r.source.slow:
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
	if !r.read {
		r.read = true
		r.source.mu.Lock()
		r.source.reads[r.layer]++
		r.source.mu.Unlock()
	}
	return r.ReadCloser.Read(b)
}

// TestApplyImportsAbove: while one layer is applied those above it are converted, also one that is fetched only meanwhile, and what is
// no tar is left alone.
func TestApplyImportsAbove(t *testing.T) {
	f := newFixture(t, "0", "1", "2")
	f.differ.layers = openStore(t, layerstore.Options{Parallel: 2})
	source := &imageSource{blobs: f.source, slow: make(chan struct{}), reads: map[digest.Digest]int{}}
	f.differ.source = source
	plain := layerTar(t)
	blob := func(n int) []byte { return append(plain[:len(plain):len(plain)], make([]byte, 512*n)...) }
	late := blob(2)
	source.layers = []ocispec.Descriptor{
		f.put(t, ocispec.MediaTypeImageLayer, blob(0)),
		f.put(t, ocispec.MediaTypeImageLayer, blob(1)),
		f.put(t, "application/vnd.example.other", blob(3)),
		{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(late), Size: int64(len(late))},
	}
	applied := make(chan error, 1)
	go func() {
		_, err := f.remote.Apply(inNamespace(t), source.layers[0], on("0"))
		applied <- err
	}()
	waitFor(t, "the second layer", func() bool {
		_, err := f.differ.layers.Get(layerstore.EagerID(source.layers[1].Digest))
		return err == nil
	})
	f.put(t, ocispec.MediaTypeImageLayer, late)
	waitFor(t, "the last layer", func() bool {
		_, err := f.differ.layers.Get(layerstore.EagerID(source.layers[3].Digest))
		return err == nil
	})
	close(source.slow)
	if err := <-applied; err != nil {
		t.Fatal(err)
	}
	for i, n := range []int{1, 3} {
		if _, err := f.remote.Apply(inNamespace(t), source.layers[n], on(fmt.Sprint(i+1))); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []int{1, 1, 0, 1} {
		if got := source.reads[source.layers[i].Digest]; got != want {
			t.Errorf("layer %d was read %d times, want %d", i, got, want)
		}
	}
}

// TestApplyDoesNotWaitForLayersAbove: a layer that never comes ends with the request that looks for it.
func TestApplyDoesNotWaitForLayersAbove(t *testing.T) {
	f := newFixture(t, "0")
	source := &imageSource{blobs: f.source, slow: make(chan struct{}), reads: map[digest.Digest]int{}}
	close(source.slow)
	f.differ.source = source
	source.layers = []ocispec.Descriptor{
		f.put(t, ocispec.MediaTypeImageLayer, layerTar(t)),
		{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString("absent"), Size: 10},
	}
	if _, err := f.remote.Apply(inNamespace(t), source.layers[0], on("0")); err != nil {
		t.Fatal(err)
	}
}

// TestFailedApplyAbandonsAbove: of a pull that fails nothing stays that nobody asked for.
func TestFailedApplyAbandonsAbove(t *testing.T) {
	f := newFixture(t, "0")
	f.differ.layers = openStore(t, layerstore.Options{Parallel: 2})
	source := &imageSource{blobs: f.source, slow: make(chan struct{}), reads: map[digest.Digest]int{}}
	f.differ.source = source
	plain := layerTar(t)
	source.layers = []ocispec.Descriptor{
		f.put(t, ocispec.MediaTypeImageLayer, plain[:len(plain)/2]), // ends inside of a file
		f.put(t, ocispec.MediaTypeImageLayer, plain),
	}
	applied := make(chan error, 1)
	go func() {
		_, err := f.remote.Apply(inNamespace(t), source.layers[0], on("0"))
		applied <- err
	}()
	above := layerstore.EagerID(source.layers[1].Digest)
	waitFor(t, "the second layer", func() bool { return f.differ.layers.Pinned(above) })
	close(source.slow)
	if err := <-applied; err == nil {
		t.Fatal("applied half a layer")
	}
	if f.differ.layers.Pinned(above) {
		t.Error("the layer above is still pinned")
	}
}

func openStore(t *testing.T, o layerstore.Options) *layerstore.Store {
	t.Helper()
	s, err := layerstore.Open(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no sign of %s", what)
		}
	}
}
