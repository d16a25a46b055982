package ondemand

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// kick has the next request of a class planned, as soon as there is a slot for it, if there is something to plan. A class waits until
// those before it have planned. The caller holds mu.
func (l *Layer) kick(c class) {
	if l.closed || l.requests >= l.share(c) || !l.hasWork(c) || slices.Contains(l.planning[:c+1], true) {
		return
	}
	l.planning[c] = true
	l.start(func(ctx context.Context) { l.next(ctx, c) })
}

// kickAll is kick for all classes.
func (l *Layer) kickAll() {
	for c := range classes {
		l.kick(c)
	}
}

// share is how many requests the layer may have when it begins another one of a class. Faults may have three quarters of what the origin
// allows, so that a blob that does not come leaves something to others; the classes after leave something to those before them.
func (l *Layer) share(c class) int64 {
	all := max(1, l.origin.slots.size*3/4)
	switch c {
	case fault:
		return all
	case ahead:
		return max(1, all-1)
	}
	return max(1, all/2)
}

// hasWork tells whether there may be something to plan. The caller holds mu.
func (l *Layer) hasWork(c class) bool {
	switch c {
	case fault:
		for _, d := range l.demands {
			if !d.finished && d.planned < d.end {
				return true
			}
		}
	case ahead:
		for i := range l.streams {
			if l.streams[i].credit > 0 {
				return true
			}
		}
	case prefetch:
		return l.prefetch.until > 0 && l.prefetch.next < l.blob.Count()
	}
	return false
}

// next waits for a slot, plans a request and does it. Meanwhile others plan the ones after it.
func (l *Layer) next(ctx context.Context, c class) {
	l.pause(ctx)
	var urgency atomic.Int32
	urgency.Store(int32(c))
	_, err := l.origin.slots.enter(ctx, 1, &urgency, nil)
	l.mu.Lock()
	l.planning[c] = false
	var r *request
	if err == nil {
		if r = l.plan(c); r != nil {
			l.requests++
		}
	}
	l.kickAll()
	l.mu.Unlock()
	switch {
	case r != nil:
		l.fetch(ctx, r)
	case err == nil:
		l.origin.slots.leave(1, nil)
	}
}

// fetch does a request that has a slot. All its extents have arrived or are missed when it returns. A request of an origin that has
// nothing in memory does not wait for memory, so that origins from which nothing comes cannot stop the others.
func (l *Layer) fetch(ctx context.Context, r *request) {
	memory, err := l.engine.memory.enter(ctx, r.memory(), &r.class, &l.origin.loaded)
	if err != nil {
		l.freeSlot()
		l.missed(r.extents, err)
		return
	}
	a := newArrival(l.engine.buffers.get(int(r.bytes())))
	var bad []corrupt
	var decodeErr error
	var decoding sync.WaitGroup
	decode := func() { bad, decodeErr = l.decode(ctx, r, a) }
	if r.decodedAsItComes() {
		decoding.Go(decode)
	}
	err = l.read(ctx, r, a)
	if err != nil {
		l.noteOutcome(ctx, err) // before anything else is planned
	}
	a.end(err)
	l.freeSlot()
	if decoding.Wait(); !r.decodedAsItComes() {
		decode()
	}
	if err == nil {
		l.noteOutcome(ctx, decodeErr)
	}
	l.engine.buffers.put(a.buf)
	l.engine.memory.leave(memory, &l.origin.loaded)
	l.repair(ctx, r, bad)
}

// read fills the buffer of a request.
func (l *Layer) read(ctx context.Context, r *request, a *arrival) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if len(a.buf) == 0 {
		return nil
	}
	l.counts.requests.Add(1)
	c := class(r.class.Load())
	if c != prefetch {
		l.engine.readers.come()
		defer l.engine.readers.leave()
	}
	if err := l.o.Source.ReadAt(ctx, a.buf, r.from, r.attempt, a.came); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		l.counts.failedRequests.Add(1)
		return fmt.Errorf("bytes %d to %d of its blob: %w", r.from, r.to, err)
	}
	l.counts.fetched.Add(r.bytes())
	if c == prefetch {
		l.counts.prefetched.Add(r.bytes())
	}
	return nil
}

// freeSlot gives the slot of a request back.
func (l *Layer) freeSlot() {
	l.origin.slots.leave(1, nil)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests--
	l.kickAll()
}

// noteOutcome says how a request went. After an error nothing more is fetched that nobody waits for: streams begin anew, and what was not
// prefetched is left to the background fill.
func (l *Layer) noteOutcome(ctx context.Context, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest.note(err)
	if err == nil || ctx.Err() != nil {
		return
	}
	l.lastError, l.failedAt = err, time.Now()
	l.prefetch.next = l.blob.Count()
	for i := range l.streams {
		l.streams[i].stop()
	}
}

// repair fetches again what was corrupt, with requests of the same class.
func (l *Layer) repair(ctx context.Context, r *request, bad []corrupt) {
	for len(bad) > 0 {
		again := &request{attempt: r.attempt + 1}
		again.class.Store(r.class.Load())
		n := 0
		for ; n < len(bad) && again.fits(bad[n].numbered); n++ {
			again.add(bad[n].numbered)
		}
		if again.attempt >= l.o.Attempts {
			l.unrepaired(bad[:n])
		} else {
			l.engine.options.Log.Warn("corrupt bytes from the registry, fetched again",
				"layer", l.o.Name, "extent", bad[0].i, "attempt", again.attempt, "cause", bad[0].err)
			l.refetch(ctx, again)
		}
		bad = bad[n:]
	}
}

// unrepaired gives up extents that were corrupt too often.
func (l *Layer) unrepaired(bad []corrupt) {
	for _, x := range bad {
		err := fmt.Errorf("extent %d (%d bytes at %d; bytes %d to %d of its blob): corrupt %d times: %w",
			x.i, x.Length, x.Offset, x.BlobOffset, x.blobEnd(), l.o.Attempts, x.err)
		l.noteError(err)
		l.missed([]numbered{x.numbered}, err)
	}
}

func (l *Layer) refetch(ctx context.Context, r *request) {
	l.mu.Lock()
	for _, x := range r.extents {
		l.flying[x.i] = r // so that the new request is the one that is raised
		for _, d := range l.demands {
			if d.wants(x.i) {
				r.class.Store(int32(fault))
			}
		}
	}
	l.mu.Unlock()
	if _, err := l.origin.slots.enter(ctx, 1, &r.class, nil); err != nil {
		l.missed(r.extents, err)
		return
	}
	l.mu.Lock()
	l.requests++
	l.mu.Unlock()
	l.fetch(ctx, r)
}

// rest is the pause that a layer makes between requests after one has failed, so that readers who try again and again do not ask a registry
// for as much. The next one that succeeds ends it.
type rest struct {
	until time.Time
	last  time.Duration
}

const (
	firstRest = 100 * time.Millisecond
	mostRest  = 5 * time.Second
)

// note says how a request went. The mu of the layer is held.
func (r *rest) note(err error) {
	if err == nil {
		*r = rest{}
		return
	}
	r.last = min(max(2*r.last, firstRest), mostRest)
	r.until = time.Now().Add(r.last)
}

// pause waits for the end of the rest, or of ctx.
func (l *Layer) pause(ctx context.Context) {
	for {
		l.mu.Lock()
		wait := time.Until(l.rest.until)
		l.mu.Unlock()
		if wait <= 0 {
			return
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}
