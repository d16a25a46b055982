package ondemand

import (
	"maps"
	"slices"
	"sync/atomic"
	"time"
)

// LayerStats are what happened to a layer since it was added. Bytes are of data unless something else is said.
type LayerStats struct {
	// Faults counts calls of Fill, Failed those that ended with an error, among them Expired at the deadline. What the callers have
	// given up themselves is no failure.
	Faults, Failed, Expired int64
	// Fetches counts requests to the Source, FailedFetches those that brought nothing. FetchedBytes is the compressed bytes that came,
	// among them PrefetchedBytes before anybody asked.
	Fetches, FailedFetches, FetchedBytes, PrefetchedBytes int64
	// FilledBytes are those of extents that were written because of requests, BackgroundBytes those that came with Put.
	FilledBytes, BackgroundBytes int64
	// Corrupt counts extents whose bytes were wrong, each time.
	Corrupt int64
	// FailedFills counts background fills that failed.
	FailedFills int64

	// Pending is how many extents are on their way.
	Pending int
	// Waiting are the faults that wait, in the order in which they came.
	Waiting []Waiting
	// ReadHard says that so much was read that the background fill hurries.
	ReadHard bool
	// Filling says that the background fill runs, Checked that it has succeeded.
	Filling, Checked bool
	// LastError is what failed last, nil if nothing has.
	LastError error
	FailedAt  time.Time
}

// Waiting is a fault that waits.
type Waiting struct {
	Offset, Length int64
	Since          time.Time
}

// add adds counts.
func (s *LayerStats) add(o LayerStats) {
	for _, c := range [][2]*int64{
		{&s.Faults, &o.Faults}, {&s.Failed, &o.Failed}, {&s.Expired, &o.Expired}, {&s.Fetches, &o.Fetches}, {&s.FailedFetches, &o.FailedFetches},
		{&s.FetchedBytes, &o.FetchedBytes}, {&s.PrefetchedBytes, &o.PrefetchedBytes}, {&s.FilledBytes, &o.FilledBytes},
		{&s.BackgroundBytes, &o.BackgroundBytes}, {&s.Corrupt, &o.Corrupt}, {&s.FailedFills, &o.FailedFills},
	} {
		*c[0] += *c[1]
	}
}

// counts are the counts of LayerStats.
type counts struct {
	faults, failed, expired                       atomic.Int64
	requests, failedRequests, fetched, prefetched atomic.Int64
	filled, background, corrupt, failedFills      atomic.Int64
}

func (c *counts) load() LayerStats {
	return LayerStats{
		Faults: c.faults.Load(), Failed: c.failed.Load(), Expired: c.expired.Load(),
		Fetches: c.requests.Load(), FailedFetches: c.failedRequests.Load(), FetchedBytes: c.fetched.Load(), PrefetchedBytes: c.prefetched.Load(),
		FilledBytes: c.filled.Load(), BackgroundBytes: c.background.Load(), Corrupt: c.corrupt.Load(), FailedFills: c.failedFills.Load(),
	}
}

// Stats returns what happened so far.
func (l *Layer) Stats() LayerStats {
	s := l.counts.load()
	l.mu.Lock()
	defer l.mu.Unlock()
	s.Pending = len(l.flying)
	for _, d := range l.demands {
		s.Waiting = append(s.Waiting, Waiting{d.off, d.n, d.since})
	}
	s.ReadHard, s.Filling, s.Checked = l.hardness.hard, l.fill.running, l.fill.done
	s.LastError, s.FailedAt = l.lastError, l.failedAt
	return s
}

// Stats are what an Engine has done, and does.
type Stats struct {
	// Total is the counts of all layers since the start, also of those that were closed.
	Total  LayerStats
	Layers int
	// Waiting is how many faults wait, Oldest when the first of them came.
	Waiting int
	Oldest  time.Time
	// MemoryBytes is how much is taken by requests that are on their way or wait to be decoded.
	MemoryBytes int64
}

// Stats returns what happened so far.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	s := Stats{Total: e.gone, Layers: len(e.layers), MemoryBytes: e.memory.taken()}
	layers := slices.Collect(maps.Keys(e.layers)) // those that are closed from now on are not in the total yet
	e.mu.Unlock()
	for _, l := range layers {
		one := l.Stats()
		s.Total.add(one)
		s.Waiting += len(one.Waiting)
		if len(one.Waiting) > 0 && (s.Oldest.IsZero() || one.Waiting[0].Since.Before(s.Oldest)) {
			s.Oldest = one.Waiting[0].Since
		}
	}
	return s
}

// Waiting is how many faults wait now.
func (e *Engine) Waiting() int { return e.Stats().Waiting }
