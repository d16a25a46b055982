package cachefiles

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/internal/latency"
)

// Latency is a histogram of times.
type Latency = latency.Histogram

// Stats is what a Device has done since it was opened or adopted.
type Stats struct {
	Opens, Closes, Reads uint64 // messages that were read
	Asked                uint64 // bytes in the READs
	Written              uint64 // bytes that the kernel took

	Unknown uint64 // OPENs of what Lookup did not know
	// OpenFailed is how many other OPENs were answered with an error, or had an answer that the kernel did not take.
	OpenFailed uint64
	// Failed READs were answered without data, or without all of it because of an error. Expired and NoRoom are those of them that took too
	// long, and whose data the kernel did not take because the disk is full, or nearly so.
	Failed, Expired, NoRoom uint64
	// Refused OPENs were refused by the kernel because it could not make a descriptor for them. The limit is too low, or a predecessor had
	// not ended.
	Refused uint64
	// Garbled messages could not be understood. There should be none: the kernel is of another make.
	Garbled uint64
	// Strangers are READs of objects that this process does not have, and Unanswered is how many of those, and of others, the kernel took no
	// answer for.
	Strangers, Unanswered uint64
	// Late is how many answers to READs nobody waited for.
	Late uint64
	// Repeated READs were shown again by the kernel while they were being served.
	Repeated uint64

	// Objects is how many are open now.
	Objects int
	// Answers is how long READs took that were answered with data, from reading them.
	Answers Latency
	// InFlight is what readers wait for now, the oldest first.
	InFlight []InFlight
}

// InFlight is a READ that has no answer yet.
type InFlight struct {
	Volume, Cookie string
	Offset, Length int64
	Since          time.Time // when it was read
}

type counters struct {
	opens, closes, reads, asked, written, unknown, openFailed, failed, expired, noRoom atomic.Uint64
	refused, garbled, strangers, unanswered, late, repeated                            atomic.Uint64
	answers                                                                            latency.Recorder
}

// Stats may be called at any time, also when the device is closed.
func (d *Device) Stats() Stats {
	c := &d.counts
	st := Stats{
		Opens: c.opens.Load(), Closes: c.closes.Load(), Reads: c.reads.Load(), Asked: c.asked.Load(), Written: c.written.Load(),
		Unknown: c.unknown.Load(), OpenFailed: c.openFailed.Load(), Failed: c.failed.Load(), Expired: c.expired.Load(), NoRoom: c.noRoom.Load(),
		Refused: c.refused.Load(), Garbled: c.garbled.Load(), Strangers: c.strangers.Load(), Unanswered: c.unanswered.Load(),
		Late: c.late.Load(), Repeated: c.repeated.Load(), Answers: c.answers.Load(),
	}
	d.mu.Lock()
	s := d.current
	d.mu.Unlock()
	if s != nil {
		st.Objects, st.InFlight = s.inFlight()
	}
	return st
}

func (s *session) inFlight() (objects int, list []InFlight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.objects {
		for _, r := range o.reads {
			list = append(list, InFlight{Volume: o.volume, Cookie: o.cookie, Offset: r.off, Length: r.n, Since: r.since})
		}
	}
	slices.SortFunc(list, func(a, b InFlight) int { return a.Since.Compare(b.Since) })
	return len(s.objects), list
}
