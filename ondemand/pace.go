package ondemand

import (
	"context"
	"sync"
	"time"
)

// Pace is how fast a background fill may go.
type Pace interface {
	// Wait returns when n more compressed bytes may be taken, or with the error of ctx.
	Wait(ctx context.Context, n int) error
}

const (
	// pauseMost is how long a fill pauses for readers before it takes a little all the same, so that its connections are not closed. A
	// reader who waits for longer does not wait because of fills.
	pauseMost = 5 * time.Second
	// calm is how long nobody has waited before fills go on: a program that starts reads one thing after the other.
	calm = 100 * time.Millisecond
)

// pace is the Pace of one layer.
type pace struct{ l *Layer }

func (p pace) Wait(ctx context.Context, n int) error {
	if err := p.l.engine.readers.yield(ctx); err != nil {
		return err
	}
	return sleep(ctx, p.l.engine.bucket.take(n), p.l.hard)
}

// sleep waits for a time, or the end of ctx, or until hurry is closed.
func sleep(ctx context.Context, d time.Duration, hurry <-chan struct{}) error {
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-hurry:
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// bucket bounds the rate of all fills together.
type bucket struct {
	rate int64 // bytes/s; 0 is no bound

	mu   sync.Mutex
	free time.Time // when what was taken is paid for
}

// take takes n bytes, and says how long to wait for them.
func (b *bucket) take(n int) time.Duration {
	if b.rate <= 0 {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if b.free.Before(now) {
		b.free = now
	}
	wait := b.free.Sub(now)
	b.free = b.free.Add(time.Duration(float64(n) / float64(b.rate) * float64(time.Second)))
	return wait
}

// readers counts the faults that wait and the requests for readers, of all layers.
type readers struct {
	mu     sync.Mutex
	n      int
	came   time.Time     // the last one
	left   time.Time     // when n has become 0
	ceased chan struct{} // closed when n becomes 0, and replaced
}

func newReaders() *readers { return &readers{ceased: make(chan struct{})} }

func (r *readers) come() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n++
	r.came = time.Now()
}

func (r *readers) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n--; r.n == 0 {
		r.left = time.Now()
		close(r.ceased)
		r.ceased = make(chan struct{})
	}
}

// quietSince is since when nobody has waited: now, if somebody does.
func (r *readers) quietSince() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n > 0 {
		return time.Now()
	}
	return r.left
}

// yield waits while there are readers, but not for those that have waited for pauseMost, nor for longer than that.
func (r *readers) yield(ctx context.Context) error {
	give := time.Now().Add(pauseMost)
	for {
		r.mu.Lock()
		until, ceased := r.left.Add(calm), r.ceased
		if r.n > 0 {
			until = r.came.Add(pauseMost)
		}
		r.mu.Unlock()
		if give.Before(until) {
			until = give
		}
		wait := time.Until(until)
		if wait <= 0 {
			return sleep(ctx, 0, nil)
		}
		if err := sleep(ctx, wait, ceased); err != nil {
			return err
		}
	}
}
