package ondemand

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
)

// class is how urgent a request is. See the package's documentation.
type class int32

const (
	fault class = iota
	ahead
	prefetch
	classes
)

func (c class) String() string { return [...]string{"fault", "ahead", "prefetch"}[c] }

// gate shares out something scarce: the first class first, and within a class who came first. Who takes much is not overtaken by those of
// its class or below who take little, so everybody's turn comes.
type gate struct {
	size    int64
	reserve [classes]int64 // what a class leaves to those before it

	mu      sync.Mutex
	free    int64 // less than nothing when holders had to have something
	waiting []*ticket
}

// holder is one who must not wait for others when he has nothing: one who never gives back what he has stops himself only.
type holder struct {
	has int // guarded by the mu of the gate
}

// ticket is one who waits. Its class may become better meanwhile: whoever does that calls review.
type ticket struct {
	n       int64
	class   *atomic.Int32
	holder  *holder
	granted chan struct{} // closed
}

// newGate makes a gate of which the lower classes leave something to those before them, but not all of it.
func newGate(size, aheadLeaves, prefetchLeaves int64) *gate {
	return &gate{size: size, free: size, reserve: [classes]int64{0, min(aheadLeaves, size-1), min(prefetchLeaves, size-1)}}
}

// enter waits until it may take n, or what there is for its class if that is less, and returns how much it took. h may be nil.
func (g *gate) enter(ctx context.Context, n int64, c *atomic.Int32, h *holder) (taken int64, err error) {
	g.mu.Lock()
	t := &ticket{n: min(n, g.size-g.reserve[c.Load()]), class: c, holder: h, granted: make(chan struct{})}
	g.waiting = append(g.waiting, t)
	g.grant()
	g.mu.Unlock()
	select {
	case <-t.granted:
		return t.n, nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.waiting, t); i >= 0 {
		g.waiting = slices.Delete(g.waiting, i, i+1)
	} else {
		g.give(t.n, h)
	}
	g.grant()
	return 0, context.Cause(ctx)
}

// leave gives back what was taken.
func (g *gate) leave(taken int64, h *holder) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.give(taken, h)
	g.grant()
}

// give takes something back. The caller holds mu.
func (g *gate) give(n int64, h *holder) {
	g.free += n
	if h != nil {
		h.has--
	}
}

// review looks at those who wait again, after the class of one has changed.
func (g *gate) review() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.grant()
}

// taken is how much is in use.
func (g *gate) taken() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.size - g.free
}

// grant lets in who may. The caller holds mu.
func (g *gate) grant() {
	full := false
	for c := fault; c < classes; c++ {
		for i := 0; i < len(g.waiting); {
			t := g.waiting[i]
			must := t.holder != nil && t.holder.has == 0
			switch {
			case class(t.class.Load()) != c:
				i++
			case must, !full && g.free-t.n >= g.reserve[c]:
				g.free -= t.n
				if t.holder != nil {
					t.holder.has++
				}
				g.waiting = slices.Delete(g.waiting, i, i+1)
				close(t.granted)
			default:
				full = true // also for those who want less
				i++
			}
		}
	}
}
