package fanotify

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/internal/latency"
)

// Latency is a histogram of times.
type Latency = latency.Histogram

// Stats is what a Group has done since it was made or adopted.
type Stats struct {
	Events uint64 // that were read
	Asked  uint64 // bytes in them
	Failed uint64 // answered with an I/O error, but for ErrSelfTest
	// Refused events were refused by the kernel because it could not make a descriptor for them. The limit is too low.
	Refused uint64
	// Inherited events were found in the journal, and Late is how many answers nobody waited for: mostly, the predecessor had given them.
	Inherited, Late uint64
	// Notices need no answer. There should be none: the kernel has lost an event.
	Notices uint64
	// Hits were answered at once, and Fills after data was filled. The time is from reading the event to its answer.
	Hits, Fills Latency
	// InFlight is what readers wait for now, the oldest first.
	InFlight []InFlight
}

// InFlight is an event that has no answer yet.
type InFlight struct {
	Offset, Length int64
	Since          time.Time // when it was read, or taken over
}

type counters struct {
	events, asked, failed, refused, inherited, late, notices atomic.Uint64
	hits, fills                                              latency.Recorder
}

// Stats may be called at any time, also when the group is closed.
func (g *Group) Stats() Stats {
	c := &g.counts
	st := Stats{
		Events: c.events.Load(), Asked: c.asked.Load(), Failed: c.failed.Load(), Refused: c.refused.Load(),
		Inherited: c.inherited.Load(), Late: c.late.Load(), Notices: c.notices.Load(),
		Hits: c.hits.Load(), Fills: c.fills.Load(),
	}
	g.mu.Lock()
	s := g.current
	g.mu.Unlock()
	if s != nil {
		st.InFlight = s.inFlight()
	}
	return st
}

func (s *session) inFlight() (list []InFlight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.open {
		list = append(list, InFlight{Offset: e.off, Length: e.n, Since: e.since})
	}
	slices.SortFunc(list, func(a, b InFlight) int { return a.Since.Compare(b.Since) })
	return list
}
