// Package lazy decides which layers are loaded on demand, makes their instances from an index of the layer, and checks the whole layer
// later.
//
// A layer is loaded on demand when all of this holds; otherwise it is pulled as a whole, which is counted by reason:
//
//   - its manifest names an index of a format that we read, and every byte of the layer can be verified by it,
//   - it is large enough to be worth it,
//   - its image comes from a repository whose images may be lazy,
//   - somebody can answer the kernel on this machine.
//
// What a layer contains is believed at first because the manifest vouches for its index. That the index tells the truth about the layer, and
// that the layer is what the image's configuration says (its diffID), is known only when the whole of it was read: Check does that. Until then a
// hostile image can have a chain ID that is another one's; Options.Trust says whose images may be.
package lazy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/estargz"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/zstdchunked"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// formats are the readers of indexes. At most one of them accepts a layer: a manifest that names indexes of several is refused by them.
var formats = []func(index.Layer, io.ReaderAt, index.Limits) (*index.Index, error){zstdchunked.Open, estargz.Open}

// Registry reads layers from where an image's reference says.
type Registry interface {
	// Open returns the whole blob of a layer. ctx bounds the reading, too.
	Open(ctx context.Context, image string, layer ocispec.Descriptor) (io.ReadCloser, error)
	// ReadAt fills p with the bytes of the blob from off on. attempt counts from 0 how often what came was corrupt: then another host is asked
	// first, as far as there is one.
	ReadAt(ctx context.Context, image string, layer ocispec.Descriptor, p []byte, off int64, attempt int) error
}

// Options of a Loader.
type Options struct {
	Registry Registry
	// Off makes no new instances: all layers are pulled as a whole. Those that are there go on.
	Off bool
	// MinLayerBytes is the size of the smallest layer that is loaded on demand.
	MinLayerBytes int64
	// Trust lists the repositories whose images may be; see trusts.
	Trust []string
	// Ready returns an error while nobody can answer the kernel.
	Ready func() error
	// Made is called with an instance that was made or found, pinned, and its directory: its data may be fetched from now on.
	Made func(inst layerstore.Instance, dir string) error
	// Limits bound indexes.
	Limits index.Limits
	Log    *slog.Logger
}

// Loader makes lazy instances. Safe for concurrent use.
type Loader struct {
	o       Options
	corrupt atomic.Int64 // indexes that came corrupt

	mu        sync.Mutex
	fallbacks map[Reason]Fallback
}

// New returns a Loader.
func New(o Options) *Loader { return &Loader{o: o, fallbacks: map[Reason]Fallback{}} }

// Layer makes the instance of a layer of an image from its index, unless it is there, and pins it. diffID is what the image's configuration says.
// ok is false if the layer must be pulled as a whole. An error is only that of ctx, or of a full disk.
func (l *Loader) Layer(ctx context.Context, store *layerstore.Store, image string, layer ocispec.Descriptor, diffID digest.Digest) (
	inst layerstore.Instance, pin layerstore.Pin, ok bool, err error,
) {
	if l.o.Off || store.Known(layer.Digest) {
		return inst, pin, false, nil // it is here as a whole, or will be soon
	}
	inst, pin, err = l.layer(ctx, store, image, layer, diffID)
	switch {
	case err == nil:
		return inst, pin, true, nil
	case ctx.Err() != nil:
		return inst, pin, false, context.Cause(ctx)
	case errdefs.IsResourceExhausted(err):
		return inst, pin, false, err
	}
	l.count(image, layer, err)
	return inst, pin, false, nil
}

// Again makes the instance of a layer again, and pins it.
func (l *Loader) Again(ctx context.Context, store *layerstore.Store, image string, layer ocispec.Descriptor, diffID digest.Digest) (
	layerstore.Instance, layerstore.Pin, error,
) {
	return l.make(ctx, store, image, layer, IndexAnnotations(layer.Annotations), diffID)
}

func (l *Loader) layer(ctx context.Context, store *layerstore.Store, image string, layer ocispec.Descriptor, diffID digest.Digest) (
	layerstore.Instance, layerstore.Pin, error,
) {
	named := IndexAnnotations(layer.Annotations)
	if err := l.mayBeLazy(image, layer, named); err != nil {
		return layerstore.Instance{}, layerstore.Pin{}, err
	}
	return l.make(ctx, store, image, layer, named, diffID)
}

func (l *Loader) make(ctx context.Context, store *layerstore.Store, image string, layer ocispec.Descriptor, named map[string]string, diffID digest.Digest) (
	_ layerstore.Instance, _ layerstore.Pin, err error,
) {
	id := layerstore.LazyID(layer.Digest, named)
	inst, pin, err := store.ImportLazy(ctx, id, layer.Digest, func(ctx context.Context) (layerstore.Indexed, error) {
		return l.open(ctx, image, layer, named, diffID)
	})
	if err != nil {
		return layerstore.Instance{}, layerstore.Pin{}, err
	}
	defer func() {
		if err != nil {
			pin.Release()
		}
	}()
	switch {
	case inst.Lazy.Mismatch != "":
		return inst, pin, reasonError{Mismatch, errors.New(inst.Lazy.Mismatch)}
	case inst.Lazy.DiffID != diffID:
		return inst, pin, reasonError{Mismatch, fmt.Errorf("its image says that its diffID is %s, another one says %s", diffID, inst.Lazy.DiffID)}
	}
	if err := store.AddImage(id, image); err != nil {
		l.o.Log.Warn("image not noted as a source of a layer", "image", image, "layer", layer.Digest, "cause", err)
	}
	if err := l.o.Made(inst, store.Dir(id)); err != nil {
		return inst, pin, reasonError{NotReady, err}
	}
	return inst, pin, nil
}

// mayBeLazy returns why a layer must be pulled as a whole, as far as its descriptor tells.
func (l *Loader) mayBeLazy(image string, layer ocispec.Descriptor, named map[string]string) error {
	switch {
	case len(named) == 0:
		return reasonError{NoIndex, errors.New("its manifest names no index")}
	case layer.Size < l.o.MinLayerBytes:
		return reasonError{Small, fmt.Errorf("it has %d bytes, lazy.min_layer_size is %d", layer.Size, l.o.MinLayerBytes)}
	case image == "":
		return reasonError{NoSource, errors.New("it is not known where it can be fetched from")}
	case !trusts(l.o.Trust, image):
		return reasonError{Untrusted, errors.New("its repository is not in lazy.trust")}
	}
	if err := l.o.Ready(); err != nil {
		return reasonError{NotReady, err}
	}
	return nil
}

// open reads the index of a layer.
func (l *Loader) open(ctx context.Context, image string, layer ocispec.Descriptor, named map[string]string, diffID digest.Digest) (layerstore.Indexed, error) {
	if err := layerstore.FromNetwork(ctx); err != nil {
		return layerstore.Indexed{}, err
	}
	idx, err := l.openIndex(ctx, image, layer)
	if err != nil {
		return layerstore.Indexed{}, err
	}
	return layerstore.Indexed{Index: idx, Lazy: layerstore.Lazy{
		Images: []string{image}, MediaType: layer.MediaType, Size: layer.Size, Annotations: named, DiffID: diffID,
	}}, nil
}

// indexAttempts is how often an index is asked for that comes corrupt: each of two hosts has two chances, as with data.
const indexAttempts = 4

// openIndex reads the index of a layer. One that comes corrupt is asked of other hosts: it may be the layer's fault, or that of a mirror.
func (l *Loader) openIndex(ctx context.Context, image string, layer ocispec.Descriptor) (*index.Index, error) {
	var corrupt error // of the attempts before
	for attempt := 0; ; attempt++ {
		from := &rangeReader{ctx: ctx, registry: l.o.Registry, image: image, layer: layer, attempt: attempt}
		idx, err := l.openFrom(from)
		switch {
		case err == nil:
			return idx, nil
		case from.failed != nil && corrupt != nil:
			return nil, reasonError{Unavailable, fmt.Errorf("%w (what came before was corrupt: %w)", from.failed, corrupt)}
		case from.failed != nil:
			return nil, reasonError{Unavailable, from.failed}
		case !from.answered || reasonOf(err) != BrokenIndex: // it is the manifest's fault
			return nil, err
		}
		l.corrupt.Add(1)
		if attempt+1 == indexAttempts {
			return nil, reasonError{BrokenIndex, fmt.Errorf("corrupt %d times: %w", indexAttempts, err)}
		}
		l.o.Log.Warn("corrupt index of a layer from the registry, fetched again", "image", image, "layer", layer.Digest, "attempt", attempt+1, "cause", err)
		corrupt = err
	}
}

// openFrom reads an index once, by the format whose index it is.
func (l *Loader) openFrom(from *rangeReader) (*index.Index, error) {
	described := index.Layer{Annotations: from.layer.Annotations, Size: from.layer.Size}
	for _, open := range formats {
		idx, err := open(described, from, l.o.Limits)
		switch {
		case err == nil:
			return idx, nil
		case from.failed != nil:
			return nil, err
		case !errors.Is(err, index.ErrNotLazy):
			return nil, reasonError{BrokenIndex, err}
		}
	}
	return nil, reasonError{NoIndex, index.ErrNotLazy}
}

// CorruptIndexes counts the indexes that came with wrong bytes, and were asked for again.
func (l *Loader) CorruptIndexes() int64 { return l.corrupt.Load() }

// rangeReader reads a blob as the formats want it, and keeps the error of the registry, which is no fault of the index.
type rangeReader struct {
	ctx      context.Context
	registry Registry
	image    string
	layer    ocispec.Descriptor
	attempt  int
	answered bool // bytes came
	failed   error
}

func (r *rangeReader) ReadAt(p []byte, off int64) (int, error) {
	if err := r.registry.ReadAt(r.ctx, r.image, r.layer, p, off, r.attempt); err != nil {
		r.failed = err
		return 0, err
	}
	r.answered = true
	return len(p), nil
}

// annotationPrefixes are those of all annotations that say where an index is and what its digest is.
var annotationPrefixes = []string{
	"containerd.io/snapshot/stargz/toc.digest", "io.github.containers.zstd-chunked.", "io.containers.zstd-chunked.",
}

// IndexAnnotations are those of a layer that say where its index is and what its digest is; none if it has no index.
func IndexAnnotations(all map[string]string) map[string]string {
	named := maps.Clone(all)
	maps.DeleteFunc(named, func(key, _ string) bool {
		for _, prefix := range annotationPrefixes {
			if strings.HasPrefix(key, prefix) {
				return false
			}
		}
		return true
	})
	return named
}

// Fallback counts the layers that were pulled as a whole for one reason, and describes the last one.
type Fallback struct {
	Count int64
	Time  time.Time
	Image string
	Cause string
}

// Fallbacks returns what was pulled as a whole since the start.
func (l *Loader) Fallbacks() map[Reason]Fallback {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.fallbacks)
}

func (l *Loader) count(image string, layer ocispec.Descriptor, err error) {
	reason := reasonOf(err)
	level := slog.LevelWarn
	if reason == NoIndex || reason == Small || reason == Untrusted {
		level = slog.LevelDebug
	}
	l.o.Log.Log(context.Background(), level, "layer is pulled as a whole", "image", image, "layer", layer.Digest, "reason", reason, "cause", err)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fallbacks[reason] = Fallback{Count: l.fallbacks[reason].Count + 1, Time: time.Now(), Image: image, Cause: err.Error()}
}
