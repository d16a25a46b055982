package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
)

// Opener opens a layer's blob. The stream must end with an error when ctx does.
type Opener func(ctx context.Context) (io.ReadCloser, error)

// build is a conversion that somebody waits for.
type build struct {
	layer  digest.Digest
	meter  atomic.Pointer[meter] // of the blob, once it is open
	with   any                   // see Together
	cancel context.CancelFunc
	done   chan struct{} // closed after inst and err are set, and the build is not in Store.builds any more

	waiters   int  // guarded by Store.mu
	abandoned bool // guarded by Store.mu: the last waiter has gone, so the build was cancelled; others may have come since
	ahead     bool // guarded by Store.mu: nobody has asked for it yet

	inst Instance
	err  error
}

// errAbandoned is why a build ended that nobody waited for at some time. Who came later starts anew.
var errAbandoned = errors.New("cancelled with its last waiter")

// Import makes the instance of a layer from its blob, unless it is there, and pins it.
//
// One conversion runs for one id at a time, whoever asks; the others wait for it. When ctx ends, only this caller stops
// waiting; the conversion ends with its last waiter. The blob that was read must have the digest layer: otherwise all
// waiters get an error that names both, and nothing is left behind. A digest that is not SHA-256 cannot be checked and is
// errdefs.ErrNotImplemented.
//
// The opener that is used is that of the first. When it fails, or its blob does, another caller's is tried, for it may ask in another namespace
// of containerd, another registry, with other credentials.
func (s *Store) Import(ctx context.Context, layer digest.Digest, open Opener) (Instance, Pin, error) {
	if err := checkDigest(layer); err != nil {
		return Instance{}, Pin{}, err
	}
	id := EagerID(layer)
	return s.importAs(ctx, id, layer, s.fromBlob(id, open))
}

// maker makes the instance of a build. What it returns besides is what remains to be done once the instance is in use; it may be nil.
type maker func(context.Context, *build) (Instance, func(), error)

// importAs is Import for an instance that is made in any way.
func (s *Store) importAs(ctx context.Context, id ID, layer digest.Digest, do maker) (Instance, Pin, error) {
	for failed := false; ; {
		inst, pin, b, mine, err := s.join(ctx, id, layer, do)
		if err != nil || b == nil {
			return inst, pin, err
		}
		inst, pin, err = s.wait(ctx, id, b)
		if !mine && ctx.Err() == nil && errors.Is(err, errAbandoned) {
			continue
		}
		var source sourceError
		if !mine && !failed && ctx.Err() == nil && errors.As(err, &source) && (b.with == nil || b.with != ctx.Value(togetherKey{})) {
			failed = true // once: with many callers, each would wait for all others to fail
			continue
		}
		if err != nil {
			return Instance{}, Pin{}, fmt.Errorf("import layer %s: %w", layer, err)
		}
		return inst, pin, nil
	}
}

type togetherKey struct{}

// Together says of Imports with the same key that their openers fail for the same reason: one that has waited for another's does not try its
// own.
func Together(ctx context.Context, key any) context.Context {
	return context.WithValue(ctx, togetherKey{}, key)
}

func checkDigest(layer digest.Digest) error {
	if err := layer.Validate(); err != nil {
		return fmt.Errorf("import layer %q: %w", layer, err)
	}
	if layer.Algorithm() != digest.SHA256 {
		return fmt.Errorf("import layer %s: only sha256 digests can be checked: %w", layer, errdefs.ErrNotImplemented)
	}
	return nil
}

// MayImportAhead says whether there is a place for an ImportAhead now, and whether there ever is.
func (s *Store) MayImportAhead() (now, ever bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.aheadNow < s.parallel-1 && !s.closed, s.parallel > 1
}

// Known says whether a layer's instance is there or on its way.
func (s *Store) Known(layer digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := EagerID(layer)
	_, ok := s.instances[id]
	return ok || s.builds[id] != nil
}

// ImportAhead begins to make the instance of a layer that will be asked for soon, and returns true; or that is done or on its way
// already. It returns false when all places are taken: one is always kept for an Import. What becomes of it is seen by the Import that
// follows. Until then the instance is pinned, but not for longer than aheadHold.
func (s *Store) ImportAhead(ctx context.Context, layer digest.Digest, open Opener) bool {
	if checkDigest(layer) != nil {
		return true // Import says what is wrong
	}
	id := EagerID(layer)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.instances[id]; ok || s.builds[id] != nil || s.closed {
		return true
	}
	at := &place{places: s.places}
	if s.aheadNow >= s.parallel-1 || !at.tryEnter() {
		return false
	}
	s.aheadNow++
	b := s.begin(ctx, id, layer, s.fromBlob(id, open), at)
	b.ahead = true
	return true
}

// AbandonAhead takes an ImportAhead back, unless its Import has come: the pull has failed.
func (s *Store) AbandonAhead(layer digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := EagerID(layer)
	if held := s.ahead[id]; held != nil {
		s.unpin(held)
		delete(s.ahead, id)
	}
	if b := s.builds[id]; b != nil && b.ahead {
		b.abandoned = true
		b.cancel()
	}
}

// aheadHold is how long an instance that was imported ahead waits for its Import, if nothing else keeps it. Between the two lie the
// conversions of the layers below; if the pull is given up, the instance takes room for so long.
const aheadHold = 10 * time.Minute

// join returns the instance with a pin if it is there, and otherwise the build to wait for, and whether this call began it.
func (s *Store) join(ctx context.Context, id ID, layer digest.Digest, do maker) (_ Instance, _ Pin, _ *build, mine bool, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if inst, ok := s.instances[id]; ok {
		pin := s.pin(id)
		if ahead := s.ahead[id]; ahead != nil {
			s.unpin(ahead)
			delete(s.ahead, id)
		}
		return inst, pin, nil, false, nil
	}
	if b := s.builds[id]; b != nil {
		b.waiters++
		s.leaveAhead(b) // if it was abandoned, Import begins anew
		return Instance{}, Pin{}, b, false, nil
	}
	if s.closed {
		return Instance{}, Pin{}, nil, false, errors.New("layer store is closed")
	}
	b := s.begin(ctx, id, layer, do, &place{places: s.places})
	b.waiters = 1
	return Instance{}, Pin{}, b, true, nil
}

// begin starts a build, which waits for a place unless at is one. It is called with mu held.
func (s *Store) begin(ctx context.Context, id ID, layer digest.Digest, do maker, at *place) *build {
	// The conversion belongs to all who wait, not to the first: it keeps the values of ctx but not its end.
	buildCtx, cancel := context.WithCancel(context.WithValue(context.WithoutCancel(ctx), placeKey{}, at))
	b := &build{layer: layer, with: ctx.Value(togetherKey{}), cancel: cancel, done: make(chan struct{})}
	s.builds[id] = b
	s.running.Go(func() {
		defer cancel()
		if at.kind == nil {
			if err := at.enter(buildCtx, at.local); err != nil {
				s.finish(id, b, Instance{}, err)
				return
			}
		}
		inst, after, err := do(buildCtx, b)
		at.leave()
		s.finish(id, b, inst, err)
		if after != nil {
			after()
		}
	})
	return b
}

// fromBlob makes the instance id from a layer's whole blob.
func (s *Store) fromBlob(id ID, open Opener) maker {
	return func(ctx context.Context, b *build) (Instance, func(), error) {
		fill := func(ctx context.Context, t converter.Target) (Instance, error) {
			return s.convertLayer(ctx, b, open, t)
		}
		if !s.syncAfter {
			inst, err := s.make(ctx, id, fill)
			return inst, nil, err
		}
		inst, files, err := s.makeUnsynced(ctx, id, fill)
		if err != nil {
			return Instance{}, nil, err
		}
		return inst, func() { s.settle(inst, files) }, nil
	}
}

// leaveAhead makes b a build like others. It is called with mu held.
func (s *Store) leaveAhead(b *build) {
	if b.ahead {
		b.ahead = false
		s.aheadNow--
	}
}

// finish makes the result of b known. The instance gets a pin for every waiter before anybody can remove it.
func (s *Store) finish(id ID, b *build, inst Instance, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.builds, id)
	if len(s.builds) == 0 {
		s.trimLater()
	}
	s.count(b, inst, err)
	if err == nil {
		s.instances[id] = inst
		if b.waiters > 0 {
			s.pins[id] += b.waiters
		}
		if b.ahead && !b.abandoned {
			held := s.pin(id).held
			s.ahead[id] = held
			time.AfterFunc(aheadHold, func() { s.endHold(id, held) })
		}
	} else if b.abandoned {
		err = errAbandoned
	}
	s.leaveAhead(b)
	b.inst, b.err = inst, err
	close(b.done)
}

// endHold releases the pin of an instance that was imported ahead, unless its Import has come.
func (s *Store) endHold(id ID, pin *heldPin) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unpin(pin)
	if s.ahead[id] == pin {
		delete(s.ahead, id)
	}
}

// wait returns the result of b, with one of the pins that finish made.
func (s *Store) wait(ctx context.Context, id ID, b *build) (Instance, Pin, error) {
	select {
	case <-b.done:
	case <-ctx.Done():
		if s.leave(b) {
			return Instance{}, Pin{}, ctx.Err()
		}
		// It ended at the same moment; our pin exists and must go to somebody.
	}
	if b.err != nil {
		return Instance{}, Pin{}, b.err
	}
	return b.inst, Pin{&heldPin{store: s, id: id}}, nil
}

// leave takes one waiter from b, unless b has ended.
func (s *Store) leave(b *build) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-b.done:
		return false
	default:
	}
	if b.waiters--; b.waiters == 0 {
		b.abandoned = true
		b.cancel()
	}
	return true
}

// count adds a build that has ended to the statistics. It is called with mu held.
func (s *Store) count(b *build, inst Instance, err error) {
	if err != nil {
		s.stats.Failed++
		return
	}
	m := b.meter.Load()
	if m == nil {
		return // made from an index
	}
	s.stats.Layers++
	s.stats.BlobBytes += m.read.Load()
	s.stats.TarBytes += inst.DiffBytes
	s.stats.ImageBytes += inst.MetaBytes + inst.DataBytes
	s.stats.Took += time.Since(m.started)
}

// convertLayer converts a layer's blob and checks its digest.
func (s *Store) convertLayer(ctx context.Context, b *build, open Opener, t converter.Target) (_ Instance, err error) {
	converting, span := tracer.Start(ctx, "convert", trace.WithAttributes(attribute.String("layer", b.layer.String())))
	defer func() { endSpan(span, err) }()
	opened, err := open(ctx) // what is fetched goes on beside the conversion
	if err != nil {
		return Instance{}, sourceError{err}
	}
	blob := newMeter(opened)
	defer blob.Close()
	b.meter.Store(blob)
	res, err := s.fromTar(converting, blob, t, s.limits)
	if err == nil && res.Blob != b.layer {
		err = fmt.Errorf("%w: want %s, got %s (%d bytes)", ErrDigest, b.layer, res.Blob, res.BlobBytes)
	}
	if err != nil && blob.source != "" {
		err = fmt.Errorf("blob from %s: %w", blob.source, err)
	}
	if err != nil && blob.failed.Load() {
		err = sourceError{err}
	}
	if err != nil {
		return Instance{}, err
	}
	span.SetAttributes(attribute.Int64("bytes", res.BlobBytes), attribute.String("source", blob.source))
	s.log.Info("layer converted", "layer", b.layer, "source", blob.source, "blob_bytes", res.BlobBytes, "tar_bytes", res.DiffBytes,
		"image_bytes", res.MetaBytes+res.DataBytes, "inodes", res.Inodes, "took", time.Since(blob.started), dropped(res))
	inst := fromResult(res)
	inst.Layer, inst.Source = b.layer, blob.source
	return inst, nil
}

// sourceError says that it was the opener, or reading its blob, that failed.
type sourceError struct{ error }

func (e sourceError) Unwrap() error { return e.error }

// ErrDigest says that a blob is not the one that was asked for.
var ErrDigest = errors.New("digest mismatch")

// tracer makes the spans of conversions.
var tracer = otel.Tracer("github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore")

func endSpan(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// dropped is a log attribute for what was left out of the image, none if nothing was.
func dropped(res converter.Result) slog.Attr {
	if res.Dropped == (converter.Dropped{}) {
		return slog.Attr{}
	}
	return slog.String("dropped", fmt.Sprintf("%+v", res.Dropped))
}

func fromResult(res converter.Result) Instance {
	return Instance{
		DiffID:     res.DiffID,
		DiffBytes:  res.DiffBytes,
		MetaBytes:  res.MetaBytes,
		DataBytes:  res.DataBytes,
		Inodes:     res.Inodes,
		OpaqueRoot: res.OpaqueRoot,
	}
}
