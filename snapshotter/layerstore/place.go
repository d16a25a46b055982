package layerstore

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// places bound how many layers are converted at a time. A registry that says nothing any more keeps what reads from it for minutes. So what
// comes from the network has places of its own, and so has what lies on this machine: as many of each as conversions may run, and one more
// than that for both together. What lies here always finds one, however many wait for a registry.
type places struct{ local, network, all *semaphore.Weighted }

func newPlaces(parallel int) places {
	n := int64(parallel)
	return places{local: semaphore.NewWeighted(n), network: semaphore.NewWeighted(n), all: semaphore.NewWeighted(n + 1)}
}

// place is that of one conversion. It belongs to the goroutine of its build.
type place struct {
	places
	kind *semaphore.Weighted // local or network; nil while it is none
}

// enter waits for a place of a kind.
func (p *place) enter(ctx context.Context, kind *semaphore.Weighted) error {
	if err := kind.Acquire(ctx, 1); err != nil {
		return err
	}
	if err := p.all.Acquire(ctx, 1); err != nil {
		kind.Release(1)
		return err
	}
	p.kind = kind
	return nil
}

// tryEnter takes a place for what lies on this machine, if there is one now.
func (p *place) tryEnter() bool {
	if !p.local.TryAcquire(1) {
		return false
	}
	if !p.all.TryAcquire(1) {
		p.local.Release(1)
		return false
	}
	p.kind = p.local
	return true
}

// leave gives the place back. It may be called without one.
func (p *place) leave() {
	if p.kind == nil {
		return
	}
	p.all.Release(1)
	p.kind.Release(1)
	p.kind = nil
}

type placeKey struct{}

// FromNetwork is for an Opener to call before it asks the network for its blob, with the context that it was given: its conversion goes on when
// there is a place among those that do. Without it a blob counts as one that lies on this machine. An error is that of the context.
func FromNetwork(ctx context.Context) error {
	p, ok := ctx.Value(placeKey{}).(*place)
	if !ok || p.kind == p.network {
		return nil
	}
	if p.network.TryAcquire(1) {
		p.kind.Release(1)
		p.kind = p.network
		return nil
	}
	p.leave()
	return p.enter(ctx, p.network)
}
