package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/stargzlayer"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/lazy"
)

// lazyRegistryOf gives parts of blobs, too.
type lazyRegistryOf struct {
	registryOf
	// part, if set, is what becomes of a request for a part.
	part func(ctx context.Context) error
}

func (r *lazyRegistryOf) ReadAt(ctx context.Context, _ string, layer ocispec.Descriptor, p []byte, off int64, _ int) error {
	if r.part != nil {
		if err := r.part(ctx); err != nil {
			return err
		}
	}
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	b, ok := r.w.remote[layer.Digest]
	if !ok {
		return errdefs.ErrNotFound
	}
	_, err := bytes.NewReader(b).ReadAt(p, off)
	return err
}

// newLazyWorld is a world whose puller has layers loaded on demand.
func newLazyWorld(t *testing.T, parallel int) (*world, *lazy.Loader, *lazyRegistryOf) {
	t.Helper()
	w := newWorld(t, parallel)
	log := slog.New(slog.NewTextHandler(w.log, nil))
	registry := &lazyRegistryOf{registryOf: registryOf{w}}
	loader := lazy.New(lazy.Options{
		Registry: registry, MinLayerBytes: 1, Trust: []string{"*"}, Log: log,
		Ready: func() error { return nil }, Made: func(layerstore.Instance, string) error { return nil },
	})
	w.Puller = New(w.layers, contentOf{w}, registryOf{w}, loader, log)
	t.Cleanup(w.Close)
	return w, loader, registry
}

// indexedLayer is a layer with an index.
func indexedLayer(t *testing.T, seed uint64) stargzlayer.Layer {
	t.Helper()
	return stargzlayer.Pack(t, tartest.Pack([]tartest.File{{Name: "file", Type: '0', Mode: 0o644, Data: tartest.Pattern(100_000, seed)}}))
}

// addIndexed makes an image of layers with indexes.
func (w *world) addIndexed(layers ...stargzlayer.Layer) picture {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var p picture
	var ids []digest.Digest
	var manifest ocispec.Manifest
	for _, l := range layers {
		ids = append(ids, l.DiffID)
		manifest.Layers = append(manifest.Layers, l.Descriptor)
		p.blobs = append(p.blobs, l.Blob)
		w.remote[l.Digest] = l.Blob
	}
	config, err := json.Marshal(ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: ids}})
	must(w.t, err)
	manifest.Config = ocispec.Descriptor{Digest: digest.FromBytes(config), Size: int64(len(config))}
	b, err := json.Marshal(manifest)
	must(w.t, err)
	p.layers, p.manifest, p.chains = manifest.Layers, digest.FromBytes(b), identity.ChainIDs(append([]digest.Digest(nil), ids...))
	w.content[manifest.Config.Digest], w.content[p.manifest] = config, b
	return p
}

// TestLazyPull: no layer is fetched as a whole, and the answer has what is needed to make each again.
func TestLazyPull(t *testing.T) {
	for _, parallel := range []int{1, 4} {
		t.Run(fmt.Sprint(parallel), func(t *testing.T) {
			w, loader, _ := newLazyWorld(t, parallel)
			layers := []stargzlayer.Layer{indexedLayer(t, 1), indexedLayer(t, 2), indexedLayer(t, 3)}
			p := w.addIndexed(layers...)
			for i, l := range layers {
				got, ok, err := w.Layer(w.ctx(), p.announce(i), i == 0)
				must(t, err)
				if !ok || !got.Instance.Partial() || got.Image != appImage || got.DiffID != l.DiffID || got.Descriptor.Digest != l.Digest ||
					len(got.Descriptor.Annotations) == 0 || !w.layers.Pinned(got.Instance.ID) {
					t.Errorf("layer %d: ready %v, %+v; log:\n%s", i, ok, got, w.log)
				}
				got.Pin.Release()
			}
			if w.requests() > 0 || len(w.Fallbacks())+len(loader.Fallbacks()) > 0 || w.Stats() != (Stats{Layers: 3, Pulls: 1}) {
				t.Errorf("asked for %v as a whole; fallbacks %v, %v; %+v", w.asked, w.Fallbacks(), loader.Fallbacks(), w.Stats())
			}
			w.wantUnpinned()
		})
	}
}

// TestMixedPull: layers of one image may be lazy or not.
func TestMixedPull(t *testing.T) {
	w, loader, _ := newLazyWorld(t, 2)
	plain := indexedLayer(t, 2)
	plain.Annotations = nil
	layers := []stargzlayer.Layer{indexedLayer(t, 1), plain, indexedLayer(t, 3)}
	p := w.addIndexed(layers...)
	for i := range layers {
		got, ok, err := w.Layer(w.ctx(), p.announce(i), i == 0)
		must(t, err)
		if want := i != 1; !ok || got.Instance.Partial() != want {
			t.Errorf("layer %d: ready %v, lazy %v", i, ok, got.Instance.Partial())
		}
		got.Pin.Release()
	}
	if n := loader.Fallbacks()[lazy.NoIndex].Count; n != 1 || w.requests() != 1 {
		t.Errorf("%d without an index, %d fetched as a whole", n, w.requests())
	}
}

// TestLazyUnlessItIsHere: a layer whose blob containerd has is not fetched again, in parts neither.
func TestLazyUnlessItIsHere(t *testing.T) {
	w, loader, registry := newLazyWorld(t, 1)
	l := indexedLayer(t, 1)
	p := w.addIndexed(l)
	w.content[l.Digest] = l.Blob
	registry.part = func(context.Context) error { t.Error("the registry was asked for a part"); return nil }
	got, ok, err := w.Layer(w.ctx(), p.announce(0), true)
	must(t, err)
	got.Pin.Release()
	if !ok || got.Instance.Lazy != nil || w.requests() > 0 || len(loader.Fallbacks()) > 0 {
		t.Errorf("ready %v, %+v; asked for %v; fallbacks %v", ok, got.Instance, w.asked, loader.Fallbacks())
	}
}

// TestLazyFallsBackToTheWhole: a layer that cannot be lazy is pulled as a whole, by the daemon, and checked as always.
func TestLazyFallsBackToTheWhole(t *testing.T) {
	broken := func(l stargzlayer.Layer) stargzlayer.Layer {
		return l.WithBlob(t, func(blob []byte) { blob[len(blob)-15]++ })
	}
	w, loader, _ := newLazyWorld(t, 1)
	honest := w.addIndexed(broken(indexedLayer(t, 1)))
	w.prepare(honest, 0, true)
	if n := loader.Fallbacks()[lazy.BrokenIndex].Count; n != 1 || len(w.Fallbacks()) > 0 || w.requests() != 1 {
		t.Errorf("fallbacks %v, %v; %d requests", loader.Fallbacks(), w.Fallbacks(), w.requests())
	}
	liar := broken(indexedLayer(t, 2))
	liar.DiffID = digest.FromString("another image's layer")
	w.prepare(w.addIndexed(liar), 0, false)
	w.wantFallback(Digest, liar.DiffID.String())
}

// TestLazyLiars: two images have the same layer and claim different diffIDs. The first is believed until the layer was checked; the other gets
// the whole layer, and only if that is what it says.
func TestLazyLiars(t *testing.T) {
	for _, first := range []string{"liar", "honest"} {
		t.Run(first+" first", func(t *testing.T) {
			w, loader, _ := newLazyWorld(t, 1)
			l := indexedLayer(t, 1)
			honest := w.addIndexed(l)
			l.DiffID = digest.FromString("another image's layer")
			liar := w.addIndexed(l)
			if first == "liar" {
				w.prepare(liar, 0, true)
				w.prepare(honest, 0, true)
			} else {
				w.prepare(honest, 0, true)
				w.prepare(liar, 0, false)
				w.wantFallback(Digest, l.DiffID.String())
			}
			if n := loader.Fallbacks()[lazy.Mismatch].Count; n != 1 {
				t.Errorf("fallbacks %v", loader.Fallbacks())
			}
		})
	}
}

// TestLazyWithoutSource: an image that containerd did not fetch from where the labels say is not asked for there, in parts neither.
func TestLazyWithoutSource(t *testing.T) {
	w, loader, registry := newLazyWorld(t, 1)
	p := w.addIndexed(indexedLayer(t, 1))
	w.labels = map[string]string{sourceKey: "other"}
	registry.part = func(context.Context) error { t.Error("the registry was asked for a part"); return nil }
	w.prepare(p, 0, false)
	w.wantFallback(NoSource, "")
	if n := loader.Fallbacks()[lazy.NoSource].Count; n != 1 || w.requests() > 0 {
		t.Errorf("fallbacks %v, asked for %v", loader.Fallbacks(), w.asked)
	}
}

// TestLazyCancel: a client that gives up while the index is read ends the reading, and that is no fallback of any kind.
func TestLazyCancel(t *testing.T) {
	w, loader, registry := newLazyWorld(t, 1)
	p := w.addIndexed(indexedLayer(t, 1))
	ctx, cancel := context.WithCancel(w.ctx())
	ended := make(chan struct{})
	registry.part = func(reading context.Context) error {
		cancel()
		<-reading.Done()
		close(ended)
		return reading.Err()
	}
	if _, ok, err := w.Layer(ctx, p.announce(0), true); ok || !errors.Is(err, context.Canceled) {
		t.Errorf("ready %v, error %v", ok, err)
	}
	<-ended
	if len(w.Fallbacks())+len(loader.Fallbacks()) > 0 || w.requests() > 0 {
		t.Errorf("fallbacks %v, %v; asked for %v", w.Fallbacks(), loader.Fallbacks(), w.asked)
	}
	registry.part = nil
	w.prepare(p, 0, true)
}

// TestLazyDiskFull: the whole layer would need even more room, so the client gets the error.
func TestLazyDiskFull(t *testing.T) {
	w, loader, registry := newLazyWorld(t, 1)
	p := w.addIndexed(indexedLayer(t, 1))
	registry.part = func(context.Context) error { return layerstore.Full(fmt.Errorf("write: %w", unix.ENOSPC)) }
	if _, ok, err := w.Layer(w.ctx(), p.announce(0), true); ok || !errdefs.IsResourceExhausted(err) {
		t.Errorf("ready %v, error %v", ok, err)
	}
	if len(w.Fallbacks())+len(loader.Fallbacks()) > 0 || w.requests() > 0 {
		t.Errorf("fallbacks %v, %v; asked for %v", w.Fallbacks(), loader.Fallbacks(), w.asked)
	}
}
