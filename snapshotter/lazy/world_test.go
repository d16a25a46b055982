package lazy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/stargzlayer"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

const image = "registry.example:5000/team/app:1"

// world is a registry, a layer store, and a Loader between them.
type world struct {
	*Loader
	t     *testing.T
	store *layerstore.Store
	log   *bytes.Buffer

	mu    sync.Mutex
	blobs map[digest.Digest][]byte
	// refuse, if set, is what the registry says to any request for an image.
	refuse func(image string) error
	before [][]byte // what is sent instead of a blob by the hosts of the first attempts
	asked  []string // images, one for each request
	ready  error    // what Options.Ready returns
	made   []layerstore.ID
}

// newWorld returns one whose Loader takes any layer; change changes its options.
func newWorld(t *testing.T, change ...func(*Options)) *world {
	t.Helper()
	store, err := layerstore.Open(t.TempDir(), layerstore.Options{})
	must(t, err)
	t.Cleanup(func() { must(t, store.Close()) })
	w := &world{t: t, store: store, log: &bytes.Buffer{}, blobs: map[digest.Digest][]byte{}}
	o := Options{
		Registry: registryOf{w}, MinLayerBytes: 1, Trust: []string{"*"}, Log: slog.New(slog.NewTextHandler(w.log, nil)),
		Ready: func() error { return w.ready },
		Made: func(inst layerstore.Instance, dir string) error {
			if dir != store.Dir(inst.ID) || !store.Pinned(inst.ID) {
				t.Errorf("made %s in %s, pinned %v", inst.ID, dir, store.Pinned(inst.ID))
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.made = append(w.made, inst.ID)
			return nil
		},
	}
	for _, c := range change {
		c(&o)
	}
	w.Loader = New(o)
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type registryOf struct{ w *world }

func (r registryOf) get(ctx context.Context, image string, layer ocispec.Descriptor) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	r.w.asked = append(r.w.asked, image)
	if r.w.refuse != nil {
		if err := r.w.refuse(image); err != nil {
			return nil, err
		}
	}
	b, ok := r.w.blobs[layer.Digest]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", layer.Digest, errdefs.ErrNotFound)
	}
	return b, nil
}

func (r registryOf) Open(ctx context.Context, image string, layer ocispec.Descriptor) (io.ReadCloser, error) {
	b, err := r.get(ctx, image, layer)
	return io.NopCloser(bytes.NewReader(b)), err
}

func (r registryOf) ReadAt(ctx context.Context, image string, layer ocispec.Descriptor, p []byte, off int64, attempt int) error {
	b, err := r.get(ctx, image, layer)
	if err != nil {
		return err
	}
	if attempt < len(r.w.before) {
		b = r.w.before[attempt]
	}
	if n, err := bytes.NewReader(b).ReadAt(p, off); n < len(p) {
		return fmt.Errorf("%d of %d bytes at %d of blob %s: %w", n, len(p), off, layer.Digest, err)
	}
	return nil
}

// add puts a layer into the registry.
func (w *world) add(l stargzlayer.Layer) stargzlayer.Layer {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.blobs[l.Digest] = l.Blob
	return l
}

// sample is a layer whose files one and two have the same length, and large is many chunks.
func sample(t testing.TB) stargzlayer.Layer {
	t.Helper()
	return stargzlayer.Pack(t, tartest.Pack([]tartest.File{
		{Name: "dir/", Type: '5', Mode: 0o755},
		{Name: "dir/one", Type: '0', Mode: 0o644, Data: tartest.Pattern(5000, 1)},
		{Name: "dir/two", Type: '0', Mode: 0o644, Data: tartest.Pattern(5000, 2)},
		{Name: "large", Type: '0', Mode: 0o644, Data: tartest.Pattern(300_000, 3)},
	}), estargz.WithChunkSize(16384))
}

// layer asks for a layer of an image, and expects it to be lazy, or not.
func (w *world) layer(image string, l stargzlayer.Layer, want bool) layerstore.Instance {
	w.t.Helper()
	inst, pin, ok, err := w.Layer(w.t.Context(), w.store, image, l.Descriptor, l.DiffID)
	must(w.t, err)
	if ok != want {
		w.t.Fatalf("lazy %v, want %v; log:\n%s", ok, want, w.log)
	}
	if ok != w.store.Pinned(inst.ID) {
		w.t.Errorf("pinned %v, want %v", !ok, ok)
	}
	pin.Release()
	if !ok {
		for _, inst := range w.store.List() {
			if w.store.Pinned(inst.ID) {
				w.t.Errorf("instance %s stays pinned", inst.ID)
			}
		}
	}
	return inst
}

// lazily makes the instance of a layer in the registry.
func (w *world) lazily(l stargzlayer.Layer) layerstore.Instance {
	w.t.Helper()
	return w.layer(image, w.add(l), true)
}

// wantFallback expects that one layer was pulled as a whole, and why.
func (w *world) wantFallback(reason Reason, cause string) {
	w.t.Helper()
	all := w.Fallbacks()
	f := all[reason]
	if len(all) != 1 || f.Count != 1 || !bytes.Contains([]byte(f.Cause), []byte(cause)) || f.Time.IsZero() {
		w.t.Errorf("fallbacks %+v, want one of %q: %s", all, reason, cause)
	}
	if !slices.Contains(Reasons(), reason) {
		w.t.Errorf("%q is not one of the reasons", reason)
	}
}

var errTest = errors.New("made by a test")
