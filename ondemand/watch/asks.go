package watch

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/fanotify"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/internal/latency"
)

// asks counts what the kernel asks for of one instance over its cache, as a group counts events.
type asks struct {
	events, asked, failed atomic.Uint64
	hits, fills           latency.Recorder

	mu       sync.Mutex
	inFlight map[*fanotify.InFlight]struct{}
}

// fill has layer fill a range, and counts that.
func (a *asks) fill(ctx context.Context, layer *ondemand.Layer, off, n int64) error {
	in := &fanotify.InFlight{Offset: off, Length: n, Since: time.Now()}
	a.events.Add(1)
	a.asked.Add(uint64(n))
	if layer.Ready(off, n) {
		a.hits.Add(time.Since(in.Since))
		return nil
	}
	a.mu.Lock()
	if a.inFlight == nil {
		a.inFlight = map[*fanotify.InFlight]struct{}{}
	}
	a.inFlight[in] = struct{}{}
	a.mu.Unlock()
	err := layer.Fill(ctx, off, n)
	a.mu.Lock()
	delete(a.inFlight, in)
	a.mu.Unlock()
	switch {
	case err == nil:
		a.fills.Add(time.Since(in.Since))
	case ctx.Err() == nil:
		a.failed.Add(1)
	}
	return err
}

// addTo adds what was counted.
func (a *asks) addTo(s *fanotify.Stats) {
	s.Events += a.events.Load()
	s.Asked += a.asked.Load()
	s.Failed += a.failed.Load()
	hits, fills := a.hits.Load(), a.fills.Load()
	s.Hits.Add(&hits)
	s.Fills.Add(&fills)
	a.mu.Lock()
	defer a.mu.Unlock()
	for in := range a.inFlight {
		s.InFlight = append(s.InFlight, *in)
	}
	slices.SortFunc(s.InFlight, func(a, b fanotify.InFlight) int { return a.Since.Compare(b.Since) })
}
