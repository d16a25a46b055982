// Package remote makes the layers of an image ready before containerd fetches them: straight from the registry into the layer store.
//
// containerd's side of it (core/unpack and core/metadata of containerd): before it fetches a layer it calls Prepare with the label
// containerd.io/snapshot.ref, the chain ID that the layer's snapshot shall have. A snapshotter that has or makes such a snapshot answers
// AlreadyExists, and containerd fetches nothing. Which image and layer it is, other labels say (pkg/snapshotters).
//
// # Labels are hints
//
// Some labels can come from the author of an image. So nothing is believed that cannot be checked:
//
//   - The manifest is read from containerd's content store, which has it before it unpacks, and checked against its digest. No manifest, no
//     remote pull.
//   - The layer must be in that manifest, and the chain ID that follows from the configuration must be the wanted one at its place.
//   - A registry is asked only if containerd itself fetched the manifest from that host and repository, as its label
//     containerd.io/distribution.source.<host> on the manifest says. The label has no port: another port of the host passes.
//   - The layer's blob must have its digest and its tar the diffID of the configuration, before anything is committed.
//
// # A pull
//
// The first layer that is asked for begins work on those above it, as many at a time as the layer store converts. What was made ahead is pinned
// until it is asked for, or the pull ends: with its last layer, when its client gives up, when nothing was asked for a while, or when it
// falls back. A layer that several pulls want is fetched once.
//
// A layer that cannot be made ready falls back: containerd fetches it, and then all above it whatever we answer, so the rest of the pull is
// left to it and our work is given up. That is counted by reason and logged once for each pull. A pull that begins anew is tried anew. Only
// labels that do not fit decide for nothing but their own request: they may be forged.
package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.opentelemetry.io/otel"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/lazy"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/startup"
)

// Content is containerd's content store. The namespace is in ctx.
type Content interface {
	// Open returns a layer's blob, or errdefs.ErrNotFound. ctx bounds the reading, too.
	Open(ctx context.Context, layer ocispec.Descriptor) (io.ReadCloser, error)
	// Document returns a manifest or a configuration, whose digest was checked, and containerd's labels on it.
	Document(ctx context.Context, name digest.Digest) ([]byte, map[string]string, error)
}

// Registry reads layers from where an image's reference says. ctx bounds the reading, too.
type Registry interface {
	Open(ctx context.Context, image string, layer ocispec.Descriptor) (io.ReadCloser, error)
}

// Layer is a layer that is ready, or whose data come when they are read.
type Layer struct {
	Instance layerstore.Instance
	// Pin keeps the instance until somebody refers to it. The caller releases it.
	Pin layerstore.Pin
	// Image is where the layer can be fetched again, empty if it must not be; Descriptor is what the manifest says of it.
	Image      string
	Descriptor ocispec.Descriptor
	// DiffID is that of the image's configuration.
	DiffID digest.Digest
	// Program is what the image starts, if this is its last layer and it says so.
	Program *startup.Program
}

// Puller makes layers ready. Safe for concurrent use.
type Puller struct {
	layers   *layerstore.Store
	content  Content
	registry Registry
	lazy     *lazy.Loader // nil: all layers are pulled as a whole
	log      *slog.Logger
	running  sync.WaitGroup // work ahead

	mu        sync.Mutex
	closed    bool
	pulls     map[pullKey]*pull
	recent    []*pull // that have ended, the last one last
	fallbacks map[Reason]Fallback
	stats     Stats
}

// New returns a puller into the layer store. Without a content store nothing can be pulled; without a registry only what is in the content
// store.
func New(layers *layerstore.Store, content Content, registry Registry, loader *lazy.Loader, log *slog.Logger) *Puller {
	return &Puller{layers: layers, content: content, registry: registry, lazy: loader, log: log, pulls: map[pullKey]*pull{}, fallbacks: map[Reason]Fallback{}}
}

// tracer makes the spans of pulls and layers.
var tracer = otel.Tracer("github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/remote")

// Close ends all work ahead and waits for it. Layer must not be called any more.
func (p *Puller) Close() {
	p.mu.Lock()
	p.closed = true
	for _, pl := range p.pulls {
		p.end(pl)
	}
	p.mu.Unlock()
	p.running.Wait()
}

// Layer makes the layer ready that the labels of a Prepare announce; root says that it shall have no parent. ok is false when nothing is
// announced, or when containerd must fetch the layer. An error is for the client: it gave up, or the disk is full.
func (p *Puller) Layer(ctx context.Context, labels map[string]string, root bool) (_ Layer, ok bool, _ error) {
	a, ok := announced(labels)
	if !ok || p.content == nil || p.registry == nil {
		return Layer{}, false, nil
	}
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return Layer{}, false, nil
	}
	// A request that came in over gRPC carries the namespace in its incoming metadata only.
	ctx = namespaces.WithNamespace(ctx, namespace)
	key := pullKey{namespace, a.image, a.manifest}
	pl, i, err := p.find(ctx, key, a, root)
	if err == nil && pl == nil {
		return Layer{}, false, nil
	}
	var layer Layer
	if err == nil {
		layer, err = p.fetch(ctx, pl, i)
	}
	switch {
	case err == nil:
		return layer, true, nil
	case ctx.Err() != nil:
		return Layer{}, false, fmt.Errorf("layer %s of %s: %w", a.layer, a.image, context.Cause(ctx))
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		// containerd would need even more room.
		return Layer{}, false, fmt.Errorf("layer %s of %s: %w: %w", a.layer, a.image, errdefs.ErrResourceExhausted, err)
	}
	p.fallBack(key, pl, i, a, err)
	return Layer{}, false, nil
}

// find has a request join its pull, and returns that and the layer's place in it. A nil pull without an error means that containerd must
// fetch the layer.
func (p *Puller) find(ctx context.Context, key pullKey, a announcement, root bool) (*pull, int, error) {
	img, seen := p.known(key)
	if img == nil && seen {
		return nil, 0, nil // it could not be read, which is remembered for a while
	}
	var err error
	if img == nil {
		if img, err = p.readImage(ctx, a); err != nil {
			return nil, 0, err
		}
	}
	i, err := img.place(a, root)
	if err != nil {
		return nil, i, err
	}
	pl, err := p.join(ctx, key, img, i)
	return pl, i, err
}

// Open returns a layer's blob from containerd's content store or, if it is not there and an image is given, from the image's registry. In an
// Opener of the layer store it waits until there is a place for what comes from the network.
func (p *Puller) Open(ctx context.Context, image string, layer ocispec.Descriptor) (io.ReadCloser, error) {
	if p.content == nil {
		return nil, fmt.Errorf("layer %s: no content store is known: %w", layer.Digest, errdefs.ErrUnavailable)
	}
	blob, err := p.content.Open(ctx, layer)
	if err == nil || image == "" || p.registry == nil || ctx.Err() != nil {
		return blob, err
	}
	if !errdefs.IsNotFound(err) {
		p.log.Warn("containerd's content store gave no answer about a layer; asking the registry", "layer", layer.Digest, "cause", err)
	}
	if err := layerstore.FromNetwork(ctx); err != nil {
		return nil, err
	}
	return p.registry.Open(ctx, image, layer)
}

// readImage reads what an image consists of, and where it may be fetched from.
func (p *Puller) readImage(ctx context.Context, a announcement) (*image, error) {
	manifest, labels, err := p.content.Document(ctx, a.manifest)
	if err != nil {
		return nil, reasonError{NoManifest, err}
	}
	img, config, err := parseManifest(manifest)
	if err != nil {
		return nil, reasonError{BadImage, fmt.Errorf("manifest %s: %w", a.manifest, err)}
	}
	b, _, err := p.content.Document(ctx, config)
	if err != nil {
		return nil, reasonError{NoManifest, err}
	}
	if err := img.addConfig(b); err != nil {
		return nil, reasonError{BadImage, fmt.Errorf("configuration %s: %w", config, err)}
	}
	if fetchedFrom(labels, a.image) {
		img.reference = a.image
	}
	return img, nil
}

// Timeouts of a pull.
const (
	// idleTime is how long a pull waits for containerd to ask for its next layer; between two it does little.
	idleTime = time.Minute
	// fallbackTime is how long a pull is remembered that fell back.
	fallbackTime = 10 * time.Minute
	// unreadableTime is how long it is remembered that an image could not be read: for about one pull.
	unreadableTime = 10 * time.Second
)
