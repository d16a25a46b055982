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
	free    int64 // less than nothing after force
	waiting []*ticket
}

// ticket is one who waits. Its class may become better meanwhile: whoever does that calls review.
type ticket struct {
	n       int64
	class   *atomic.Int32
	granted chan struct{} // closed
}

// newGate makes a gate of which the lower classes leave something to those before them, but not all of it.
func newGate(size, aheadLeaves, prefetchLeaves int64) *gate {
	return &gate{size: size, free: size, reserve: [classes]int64{0, min(aheadLeaves, size-1), min(prefetchLeaves, size-1)}}
}

// enter waits until it may take n, or what there is for its class if that is less, and returns how much it took.
func (g *gate) enter(ctx context.Context, n int64, c *atomic.Int32) (taken int64, err error) {
	g.mu.Lock()
	t := &ticket{n: min(n, g.size-g.reserve[c.Load()]), class: c, granted: make(chan struct{})}
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
		g.free += t.n
	}
	g.grant()
	return 0, context.Cause(ctx)
}

// force takes n at once.
func (g *gate) force(n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.free -= n
}

// leave gives n back.
func (g *gate) leave(n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.free += n
	g.grant()
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
	for c := fault; c < classes; c++ {
		for {
			i := slices.IndexFunc(g.waiting, func(t *ticket) bool { return class(t.class.Load()) == c })
			if i < 0 {
				break
			}
			t := g.waiting[i]
			if g.free-t.n < g.reserve[c] {
				return
			}
			g.free -= t.n
			g.waiting = slices.Delete(g.waiting, i, i+1)
			close(t.granted)
		}
	}
}
