package remote

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// pullKey is what makes requests belong to one pull.
type pullKey struct {
	namespace, image string
	manifest         digest.Digest
}

// pull is the work on one image. Everything below ctx is guarded by Puller.mu.
type pull struct {
	key     pullKey
	image   *image // nil if it could not be read
	started time.Time
	ctx     context.Context // of the work ahead
	cancel  context.CancelFunc
	span    trace.Span

	ended   time.Time
	states  []State
	held    map[int]layerstore.Pin // of layers that were made ahead
	waiting int                    // requests
	ahead   int                    // goroutines of work ahead
	next    int                    // the lowest layer that work ahead may begin with
	idle    *time.Timer            // runs while nobody waits

	fellBack bool
	from     int // the layer at which it fell back
}

// State is how far a layer of a pull is.
type State string

// States of a layer.
const (
	Waiting  State = "waiting"
	Fetching State = "fetching"
	Ready    State = "ready" // made, but not yet asked for
	Done     State = "done"
	Broken   State = "failed"
	Local    State = "local" // left to containerd
)

// known returns the image of the pull that key names, if there is one. seen says that it is known that the image cannot be read.
func (p *Puller) known(key pullKey) (img *image, seen bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pl := p.pulls[key]
	if pl == nil {
		return nil, false
	}
	return pl.image, true
}

// join makes a request for layer i part of its pull, which begins with it if there is none. It returns nil when the pull has fallen back
// below the layer.
func (p *Puller) join(ctx context.Context, key pullKey, img *image, i int) (*pull, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, fmt.Errorf("the daemon is stopping: %w", errdefs.ErrUnavailable)
	}
	pl := p.pulls[key]
	if pl != nil && pl.fellBack && i > pl.from {
		return nil, nil
	}
	if pl == nil || pl.fellBack {
		pl = newPull(ctx, key, img)
		p.pulls[key] = pl
	}
	pl.waiting++
	pl.states[i] = Fetching
	if pl.idle != nil {
		pl.idle.Stop()
	}
	if layerstore.Importable(img.layers[i].MediaType) {
		p.workAhead(pl, i+1)
	}
	return pl, nil
}

func newPull(ctx context.Context, key pullKey, img *image) *pull {
	ctx = namespaces.WithNamespace(context.WithoutCancel(ctx), key.namespace)
	ctx, span := tracer.Start(ctx, "pull", trace.WithAttributes(
		attribute.String("image", key.image), attribute.String("namespace", key.namespace), attribute.String("manifest", key.manifest.String())))
	pl := &pull{key: key, image: img, started: time.Now(), span: span, states: make([]State, len(img.layers)), held: map[int]layerstore.Pin{}}
	for i := range pl.states {
		pl.states[i] = Waiting
	}
	pl.ctx, pl.cancel = context.WithCancel(ctx)
	return pl
}

// fetch makes layer i ready for a request that has joined the pull.
func (p *Puller) fetch(ctx context.Context, pl *pull, i int) (Layer, error) {
	inst, pin, err := p.importLayer(trace.ContextWithSpan(ctx, pl.span), pl, i)
	// Of a lazy instance the Loader has compared what is known.
	if want := pl.image.diffIDs[i]; err == nil && inst.Lazy == nil && inst.DiffID != want {
		pin.Release()
		err = reasonError{Digest, fmt.Errorf("layer %s has the diffID %s, the image's configuration says %s", inst.Layer, inst.DiffID, want)}
	}
	p.leave(pl, i, err)
	if err != nil {
		return Layer{}, err
	}
	layer := Layer{Instance: inst, Pin: pin, Image: pl.image.reference, Descriptor: pl.image.layers[i], DiffID: pl.image.diffIDs[i]}
	if i == len(pl.image.layers)-1 {
		layer.Program = pl.image.program
	}
	return layer, nil
}

// leave ends a request.
func (p *Puller) leave(pl *pull, i int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pl.waiting--
	if pin, ok := pl.held[i]; ok {
		pin.Release()
		delete(pl.held, i)
	}
	if err == nil {
		pl.states[i] = Done
		p.stats.Layers++
		if i == len(pl.states)-1 {
			p.stats.Pulls++
		}
	} else {
		pl.states[i] = Broken
	}
	switch {
	case pl.waiting > 0:
	case err != nil, i == len(pl.states)-1:
		p.end(pl)
	default:
		pl.idle = time.AfterFunc(idleTime, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			if pl.waiting == 0 {
				p.end(pl)
			}
		})
	}
}

// end gives up the work of a pull that nobody has asked for. It is called with mu held, and may be called again.
func (p *Puller) end(pl *pull) {
	if !pl.ended.IsZero() || pl.image == nil {
		return
	}
	pl.ended = time.Now()
	pl.cancel()
	if pl.idle != nil {
		pl.idle.Stop()
	}
	for i, pin := range pl.held {
		pin.Release()
		delete(pl.held, i)
	}
	pl.span.End()
	if p.pulls[pl.key] == pl {
		delete(p.pulls, pl.key)
	}
	p.recent = append(p.recent[max(0, len(p.recent)-recentPulls+1):], pl)
}

// recentPulls is how many pulls are remembered after their end, for whoever asks.
const recentPulls = 8

// workAhead begins to make layers from the given one on. It is called with mu held.
func (p *Puller) workAhead(pl *pull, from int) {
	pl.next = max(pl.next, from)
	for left := len(pl.states) - pl.next; pl.ahead < p.layers.Parallel()-1 && left > 0 && pl.ended.IsZero(); left-- {
		pl.ahead++
		p.running.Go(func() {
			for {
				i, ok := p.takeAhead(pl)
				if !ok {
					return
				}
				_, pin, err := p.importLayer(trace.ContextWithSpan(pl.ctx, pl.span), pl, i)
				p.madeAhead(pl, i, pin, err)
			}
		})
	}
}

// takeAhead returns the next layer to make ahead: the largest, which would keep the pull waiting longest. If there is none the goroutine
// ends.
func (p *Puller) takeAhead(pl *pull) (i int, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	largest := -1
	// At a layer that is no tar stream the pull will fall back.
	for i := pl.next; pl.ended.IsZero() && i < len(pl.states) && layerstore.Importable(pl.image.layers[i].MediaType); i++ {
		if pl.states[i] == Waiting && (largest < 0 || pl.image.layers[i].Size > pl.image.layers[largest].Size) {
			largest = i
		}
	}
	if largest < 0 {
		pl.ahead--
		return 0, false
	}
	pl.states[largest] = Fetching
	return largest, true
}

// madeAhead keeps a layer until it is asked for. What went wrong is found again by the request for it.
func (p *Puller) madeAhead(pl *pull, i int, pin layerstore.Pin, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err != nil:
		if pl.states[i] == Fetching {
			pl.states[i] = Broken
		}
		pl.next = len(pl.states) // the others would hardly fare better
	case !pl.ended.IsZero() || pl.states[i] == Done:
		pin.Release()
	default:
		pl.states[i] = Ready
		pl.held[i] = pin
	}
}

// importLayer has the layer store make layer i, or joins whoever makes it already.
func (p *Puller) importLayer(ctx context.Context, pl *pull, i int) (_ layerstore.Instance, _ layerstore.Pin, err error) {
	layer := pl.image.layers[i]
	if !layerstore.Importable(layer.MediaType) {
		return layerstore.Instance{}, layerstore.Pin{}, reasonError{MediaType, fmt.Errorf("layer %s has the media type %q", layer.Digest, layer.MediaType)}
	}
	ctx, span := tracer.Start(ctx, "layer", trace.WithAttributes(attribute.String("layer", layer.Digest.String()), attribute.Int64("bytes", layer.Size)))
	defer func() {
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}()
	if p.lazy != nil && !p.inContent(namespaces.WithNamespace(ctx, pl.key.namespace), layer) {
		inst, pin, ok, err := p.lazy.Layer(ctx, p.layers, pl.image.reference, layer, pl.image.diffIDs[i])
		if ok || err != nil {
			return inst, pin, err
		}
	}
	return p.layers.Import(layerstore.Together(ctx, pl), layer.Digest, func(ctx context.Context) (io.ReadCloser, error) {
		// The conversion may outlive this pull, when others wait for it too.
		return p.openLayer(namespaces.WithNamespace(ctx, pl.key.namespace), pl.image.reference, layer)
	})
}

// inContent says whether containerd has the layer's blob: then nothing needs to be fetched.
func (p *Puller) inContent(ctx context.Context, layer ocispec.Descriptor) bool {
	blob, err := p.content.Open(ctx, layer)
	if err != nil {
		return false
	}
	blob.Close()
	return true
}

func (p *Puller) openLayer(ctx context.Context, image string, layer ocispec.Descriptor) (io.ReadCloser, error) {
	blob, err := p.Open(ctx, image, layer)
	if image == "" && errdefs.IsNotFound(err) {
		return nil, reasonError{NoSource, fmt.Errorf("containerd did not fetch the manifest from where the image's reference says: %w", err)}
	}
	return blob, err
}
