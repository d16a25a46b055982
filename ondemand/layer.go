package ondemand

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
)

// Layer is one lazy layer. Ready and Fill are what a transport calls. Safe for concurrent use.
type Layer struct {
	engine  *Engine
	blob    *blob.Blob
	o       LayerOptions
	origin  *origin
	places  layerPlaces
	streams streams
	counts  counts
	closing chan struct{} // closed by Close
	hard    chan struct{} // closed when the layer is read hard

	mu         sync.Mutex
	closed     bool
	users      sync.WaitGroup // who may use the blob; Add only with mu held
	ctx        context.Context
	cancel     context.CancelCauseFunc
	flying     map[int]*request // by extent: planned, and neither present nor failed
	demands    []*demand        // in the order in which they came
	hardness   hardness
	vain       []vain
	prefetch   cursor
	planning   [classes]bool // somebody waits for a slot to plan the next request with
	requests   int64         // that have a slot
	rest       rest
	quietSince time.Time // when a fault that had to fetch came or was answered last
	fill       fill
	completed  bool
	lastError  error
	failedAt   time.Time
}

// Ready says whether all of the data from off on, n bytes, is present. It takes no lock and allocates nothing, except that once in a window
// of a stream it has the next one fetched.
func (l *Layer) Ready(off, n int64) bool {
	select {
	case <-l.closing:
		return false
	default:
	}
	if !l.present(off, n) {
		return false
	}
	if s, more := l.streams.reaches(off, n); s != nil {
		l.start(func(context.Context) { l.goOn(s, more) })
	}
	return true
}

// Fill returns when all of the data from off on, n bytes, is present, or with an error: of what failed, ErrDeadline, ErrClosed, or that
// of ctx.
func (l *Layer) Fill(ctx context.Context, off, n int64) error {
	l.counts.faults.Add(1)
	if !l.enter() {
		return l.faultError(off, n, ErrClosed)
	}
	defer l.users.Done()
	first, end, err := l.blob.Covering(off, n)
	if err != nil {
		return l.failedFault(off, n, err)
	}
	if l.blob.NextAbsent(first, end) == end {
		return nil
	}
	d, err := l.want(off, n, first, end)
	if err != nil {
		return l.failedFault(off, n, err)
	}
	defer l.unwant(d)
	switch err := l.await(ctx, d); {
	case err == nil && l.blob.NextAbsent(first, end) != end: // whoever reads would get zeros: not even because of a mistake of ours
		return l.failedFault(off, n, errAbsent)
	case err == nil:
		return nil
	case errors.Is(err, ErrClosed), ctx.Err() != nil:
		return l.faultError(off, n, err)
	default:
		return l.failedFault(off, n, err)
	}
}

// errAbsent says that a fault was told that its data are present, which they are not.
var errAbsent = errors.New("data are absent though nothing failed")

// await waits until a fault can be answered.
func (l *Layer) await(ctx context.Context, d *demand) error {
	patience := l.patience(d)
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	select {
	case err := <-d.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-l.closing:
		return ErrClosed
	case <-l.engine.ended:
		return ErrClosed
	case <-deadline.C:
		l.counts.expired.Add(1)
		l.noteExpired(d)
		return fmt.Errorf("%w of %v", ErrDeadline, patience)
	}
}

// faultError says which fault an error is about.
func (l *Layer) faultError(off, n int64, err error) error {
	return fmt.Errorf("layer %s: %d bytes at %d of its data: %w", l.o.Name, n, off, err)
}

// failedFault is faultError for what is to be counted.
func (l *Layer) failedFault(off, n int64, err error) error {
	l.counts.failed.Add(1)
	l.noteError(err)
	return l.faultError(off, n, err)
}

// Put writes extent i, whose bytes the caller has verified, if it is absent, and wakes those who wait for it. It is for Complete.
func (l *Layer) Put(i int, bytes []byte) error {
	if !l.enter() {
		return fmt.Errorf("layer %s: extent %d: %w", l.o.Name, i, ErrClosed)
	}
	defer l.users.Done()
	if i >= 0 && i < l.blob.Count() && l.blob.Present(i) {
		return nil
	}
	if err := l.blob.Write(i, bytes); err != nil {
		return fmt.Errorf("layer %s: %w", l.o.Name, err)
	}
	l.counts.background.Add(int64(len(bytes)))
	l.arrived(i)
	return nil
}

// Prefetch has everything fetched that lies in the first until bytes of the layer's blob.
func (l *Layer) Prefetch(until int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if until > l.prefetch.until {
		l.prefetch = cursor{until: until}
		l.kick(prefetch)
	}
}

// Close ends all work for the layer, and everything that waits, and returns when nothing uses the blob any more. The transport has stopped
// asking. Complete must not call it. It may be called again.
func (l *Layer) Close() {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.closing)
		if l.cancel != nil {
			l.cancel(ErrClosed)
		}
	}
	l.mu.Unlock()
	l.users.Wait()
	l.engine.remove(l)
}

// enter says that the caller uses the blob until it says users.Done.
func (l *Layer) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.users.Add(1)
	return true
}

// start runs do in a goroutine of Run's, unless the layer is closed by then. Its context ends with the layer.
func (l *Layer) start(do func(context.Context)) {
	l.engine.start(func(run context.Context) {
		if !l.enter() {
			return
		}
		defer l.users.Done()
		do(l.context(run))
	})
}

func (l *Layer) context(run context.Context) context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx == nil {
		l.ctx, l.cancel = context.WithCancelCause(run)
		if l.closed {
			l.cancel(ErrClosed)
		}
	}
	return l.ctx
}

func (l *Layer) noteError(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastError, l.failedAt = err, time.Now()
}

// arrived says that extent i was written.
func (l *Layer) arrived(i int) {
	l.mu.Lock()
	l.vain = nil
	delete(l.flying, i)
	for _, d := range l.demands {
		if d.wants(i) {
			l.settle(d)
		}
	}
	l.mu.Unlock()
	l.noteComplete()
}

// missed says that extents could not be had.
func (l *Layer) missed(extents []numbered, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range extents {
		delete(l.flying, x.i)
		for _, d := range l.demands {
			if d.wants(x.i) {
				d.finish(err)
			}
		}
	}
}

// noteComplete has Completed called when everything is present.
func (l *Layer) noteComplete() {
	if p := l.blob.Progress(); p.PresentExtents < p.Extents {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.completed || l.closed {
		return
	}
	l.completed = true
	if l.o.Completed != nil {
		l.engine.start(func(context.Context) { l.o.Completed() }) // not a user of the blob: it may close the layer
	}
}
