package snapshotter

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/stargzlayer"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/watch"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/lazy"
)

// lazyRegistry has layers, of which it gives the whole, counted, and parts.
type lazyRegistry struct{ memoryRegistry }

func (r *lazyRegistry) ReadAt(_ context.Context, _ string, layer ocispec.Descriptor, p []byte, off int64, _ int) error {
	b, ok := r.blobs[layer.Digest]
	if !ok {
		return errdefs.ErrNotFound
	}
	_, err := bytes.NewReader(b).ReadAt(p, off)
	return err
}

// answering is an OnDemand that lets the kernel read holes: nobody answers. What is asked of it is real, or what the test says.
type answering struct {
	mu      sync.Mutex
	watches map[string]bool // instances
	serves  map[string]bool // directories
	unsure  error
	mounts  int
	// mount, if set, takes the place of what Mount does.
	mount func(instance string) (*Answering, error)
	// live and dead are instances with mounts over the kernel's cache.
	live, dead map[string]bool
	// asked, if set, is called before Watches answers.
	asked func(instance string)
}

func (a *answering) Mount(_ context.Context, instance string) (*Answering, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mounts++
	if a.mount != nil {
		return a.mount(instance)
	}
	return &Answering{Check: func(string) error { return nil }}, nil
}

func (a *answering) OverCache(instance string) (live, dead bool, err error) {
	return a.live[instance], a.dead[instance], nil
}

func (a *answering) Watches(instance string) bool {
	if a.asked != nil {
		a.asked(instance)
	}
	return a.watches[instance]
}

func (a *answering) Unsure() error                  { return a.unsure }
func (a *answering) Serves(dir string) bool         { return a.serves[dir] }
func (a *answering) Alive(dir string) (bool, error) { return watch.Alive(dir) }

// lazyWorld is what a snapshotter needs that loads layers on demand.
type lazyWorld struct {
	t        *testing.T
	root     string
	content  memoryContent
	registry *lazyRegistry
	demand   *answering
	log      *bytes.Buffer
	left     []string // directories
	program  []string // of images, if any
}

func newLazyWorld(t *testing.T) *lazyWorld {
	t.Helper()
	testenv.Need(t, fileBacked)
	return &lazyWorld{
		t: t, root: newRoot(t), content: memoryContent{}, registry: &lazyRegistry{memoryRegistry{blobs: map[digest.Digest][]byte{}}},
		demand: &answering{watches: map[string]bool{}, serves: map[string]bool{}}, log: &bytes.Buffer{},
	}
}

func (w *lazyWorld) options() Options {
	o := immediate(w.root)
	o.Content, o.Registry, o.OnDemand = w.content, w.registry, w.demand
	o.Log = slog.New(slog.NewTextHandler(io.MultiWriter(w.log, testWriter{w.t}), nil))
	o.Lazy = lazy.New(lazy.Options{
		Registry: w.registry, MinLayerBytes: 1, Trust: []string{"*"}, Log: o.Log,
		Ready: func() error { return nil },
		Made:  func(layerstore.Instance, string) error { return nil },
	})
	o.Layers.Left = func(_ layerstore.Instance, dir string) { w.left = append(w.left, dir) }
	return o
}

func (w *lazyWorld) start() *Snapshotter {
	w.t.Helper()
	return start(w.t, w.options())
}

// lazyLayer is a layer whose files one and two have the same length.
func lazyLayer(t *testing.T) stargzlayer.Layer {
	t.Helper()
	return stargzlayer.Pack(t, tartest.Pack([]tartest.File{
		{Name: "one", Type: '0', Mode: 0o644, Data: lazyFile("one")},
		{Name: "two", Type: '0', Mode: 0o644, Data: lazyFile("two")},
	}), estargz.WithChunkSize(16384))
}

// otherLayer is a layer of one file.
func otherLayer(t *testing.T) stargzlayer.Layer {
	t.Helper()
	return stargzlayer.Pack(t, tartest.Pack([]tartest.File{{Name: "other", Type: '0', Mode: 0o644, Data: lazyFile("other")}}))
}

// lazyFile is what is in a file of lazyLayer.
func lazyFile(name string) []byte { return tartest.Pattern(100_000, uint64(name[0])) }

// image makes an image of layers.
func (w *lazyWorld) image(layers ...stargzlayer.Layer) remoteImage {
	w.t.Helper()
	var img remoteImage
	var ids []digest.Digest
	for _, l := range layers {
		w.registry.blobs[l.Digest] = l.Blob
		img.layers, ids = append(img.layers, l.Descriptor), append(ids, l.DiffID)
	}
	put := func(v any) ocispec.Descriptor {
		b, err := json.Marshal(v)
		must(w.t, err)
		w.content[digest.FromBytes(b)] = b
		return ocispec.Descriptor{Digest: digest.FromBytes(b), Size: int64(len(b))}
	}
	img.chains = identity.ChainIDs(append([]digest.Digest(nil), ids...))
	config := put(ocispec.Image{
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: ids},
		Config: ocispec.ImageConfig{Entrypoint: w.program[:min(len(w.program), 1)], Cmd: w.program[min(len(w.program), 1):], Env: []string{"A=b"}, WorkingDir: "/dir"},
	})
	img.manifest = put(ocispec.Manifest{Config: config, Layers: img.layers}).Digest
	return img
}

// pullLazily pulls an image of one layer, and returns its snapshot and its instance.
func (w *lazyWorld) pullLazily(s *Snapshotter, l stargzlayer.Layer) (top string, inst layerstore.Instance) {
	w.t.Helper()
	top = pullRemote(w.t, s, inNamespace(w.t, "default"), w.image(l))
	inst = instanceOf(w.t, s, top)
	if !inst.Partial() {
		w.t.Fatalf("not lazy: %+v; log:\n%s", inst, w.log)
	}
	return top, inst
}

// fillFile writes the extents of a file's contents into the data blob of an instance.
func (w *lazyWorld) fillFile(s *Snapshotter, inst layerstore.Instance, content []byte) {
	w.t.Helper()
	b, err := blob.Open(s.layers.Dir(inst.ID), inst.ID.Bytes(), blob.Options{})
	must(w.t, err)
	defer func() { must(w.t, b.Close()) }()
	extents, err := b.Extents(0, b.Count())
	must(w.t, err)
	written := 0
	for i, x := range extents {
		for at := 0; at+int(x.Length) <= len(content); at += 16384 {
			if piece := content[at : at+int(x.Length)]; digest.FromBytes(piece) == digest.NewDigestFromBytes(digest.SHA256, x.Digest[:]) {
				must(w.t, b.Write(i, piece))
				written++
			}
		}
	}
	if written == 0 {
		w.t.Fatal("the instance has no such file")
	}
}

// opened mounts what a snapshotter returned, and opens a file that stays open when the mounts have gone.
func opened(t *testing.T, mounts []mount.Mount, err error, name string) *os.File {
	t.Helper()
	f, err := os.Open(filepath.Join(mounted(t, mounts, err), name))
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// readUncached reads a file from its blob.
func readUncached(f *os.File, off int64) ([]byte, error) {
	p := make([]byte, 4096)
	_, err := f.ReadAt(p, off)
	return p, err
}
