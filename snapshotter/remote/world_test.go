package remote

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// world is a content store and a registry, and a puller between them.
type world struct {
	*Puller
	t      *testing.T
	layers *layerstore.Store
	log    *bytes.Buffer

	mu      sync.Mutex
	content map[digest.Digest][]byte
	labels  map[string]string // of every manifest in content
	remote  map[digest.Digest][]byte
	asked   []string // images that the registry was asked for, one for each blob
	// fetch, if set, takes remote's place; see serve.
	fetch func(ctx context.Context, image string, layer digest.Digest) (io.ReadCloser, error)
}

const (
	appImage  = "registry.example:5000/team/app:1"
	sourceKey = "containerd.io/distribution.source.registry.example"
)

func newWorld(t *testing.T, parallel int) *world {
	t.Helper()
	store, err := layerstore.Open(t.TempDir(), layerstore.Options{Parallel: parallel})
	must(t, err)
	w := &world{t: t, layers: store, log: &bytes.Buffer{}, content: map[digest.Digest][]byte{}, labels: map[string]string{sourceKey: "other,team/app"},
		remote: map[digest.Digest][]byte{}}
	w.Puller = New(store, contentOf{w}, registryOf{w}, nil, slog.New(slog.NewTextHandler(w.log, nil)))
	t.Cleanup(func() {
		w.Close()
		must(t, store.Close())
	})
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type contentOf struct{ w *world }

func (c contentOf) Open(ctx context.Context, layer ocispec.Descriptor) (io.ReadCloser, error) {
	b, err := c.get(ctx, layer.Digest)
	return io.NopCloser(bytes.NewReader(b)), err
}

func (c contentOf) Document(ctx context.Context, name digest.Digest) ([]byte, map[string]string, error) {
	b, err := c.get(ctx, name)
	return b, c.w.labels, err
}

func (c contentOf) get(ctx context.Context, name digest.Digest) ([]byte, error) {
	if _, err := namespaces.NamespaceRequired(ctx); err != nil {
		return nil, err
	}
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	b, ok := c.w.content[name]
	if !ok {
		return nil, fmt.Errorf("content %s: %w", name, errdefs.ErrNotFound)
	}
	return b, nil
}

type registryOf struct{ w *world }

func (r registryOf) Open(ctx context.Context, image string, layer ocispec.Descriptor) (io.ReadCloser, error) {
	r.w.mu.Lock()
	r.w.asked = append(r.w.asked, image)
	b, ok := r.w.remote[layer.Digest]
	fetch := r.w.fetch
	r.w.mu.Unlock()
	if fetch != nil {
		return fetch(ctx, image, layer.Digest)
	}
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", layer.Digest, errdefs.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// serve has blobs come from fetch, or from remote when it is nil.
func (w *world) serve(fetch func(ctx context.Context, image string, layer digest.Digest) (io.ReadCloser, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fetch = fetch
}

func (w *world) requests() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.asked)
}

// picture is an image, whose manifest and configuration are in the content store and whose layers are in the registry.
type picture struct {
	manifest digest.Digest
	layers   []ocispec.Descriptor
	blobs    [][]byte
	chains   []digest.Digest
}

// add makes an image with a layer for each content.
func (w *world) add(contents ...string) picture {
	w.t.Helper()
	var blobs [][]byte
	var ids []digest.Digest
	for _, c := range contents {
		b := tarOf(w.t, c)
		blobs, ids = append(blobs, b), append(ids, digest.FromBytes(b))
	}
	return w.addWith(blobs, ids)
}

func (w *world) addWith(blobs [][]byte, ids []digest.Digest) picture {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	p := picture{blobs: blobs, chains: identity.ChainIDs(append([]digest.Digest(nil), ids...))}
	config, err := json.Marshal(ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: ids}})
	must(w.t, err)
	manifest := ocispec.Manifest{Config: ocispec.Descriptor{Digest: digest.FromBytes(config), Size: int64(len(config))}}
	for _, b := range blobs {
		l := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(b), Size: int64(len(b))}
		manifest.Layers = append(manifest.Layers, l)
		w.remote[l.Digest] = b
	}
	b, err := json.Marshal(manifest)
	must(w.t, err)
	p.layers, p.manifest = manifest.Layers, digest.FromBytes(b)
	w.content[manifest.Config.Digest], w.content[p.manifest] = config, b
	return p
}

func tarOf(t *testing.T, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(t, w.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: int64(len(content))}))
	_, err := io.WriteString(w, content)
	must(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

// announce returns the labels of containerd's Prepare for layer i.
func (p picture) announce(i int) map[string]string {
	return map[string]string{
		TargetLabel:                            p.chains[i].String(),
		snapshotters.TargetRefLabel:            appImage,
		snapshotters.TargetManifestDigestLabel: p.manifest.String(),
		snapshotters.TargetLayerDigestLabel:    p.layers[i].Digest.String(),
	}
}

func (w *world) ctx() context.Context { return namespaces.WithNamespace(w.t.Context(), "default") }

// prepare asks for layer i and expects it to be made ready, or not.
func (w *world) prepare(p picture, i int, want bool) {
	w.t.Helper()
	layer, ok, err := w.Layer(w.ctx(), p.announce(i), i == 0)
	must(w.t, err)
	if ok != want {
		w.t.Fatalf("layer %d: ready %v, want %v; log:\n%s", i, ok, want, w.log)
	}
	if ok && layer.Instance.Layer != p.layers[i].Digest {
		w.t.Fatalf("layer %d: got %s, want %s", i, layer.Instance.Layer, p.layers[i].Digest)
	}
	layer.Pin.Release()
}

// wantFallback expects one pull to have fallen back, for this reason.
func (w *world) wantFallback(reason Reason, cause string) {
	w.t.Helper()
	all := w.Fallbacks()
	if f := all[reason]; len(all) != 1 || f.Count != 1 || !strings.Contains(f.Cause, cause) || f.Image != appImage {
		w.t.Errorf("fallbacks %+v, want one of %q: %s", all, reason, cause)
	}
}

// wantUnpinned expects no layer to stay pinned. Work ahead of a pull that has ended may let go of one a moment later.
func (w *world) wantUnpinned() {
	w.t.Helper()
	eventually(w.t, "no layer is pinned", func() bool {
		return !slices.ContainsFunc(w.layers.List(), func(inst layerstore.Instance) bool { return w.layers.Pinned(inst.ID) })
	})
}

// eventually waits for what happens in the background.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}
