package ondemand

import (
	"math"
	"sync/atomic"
	"time"
)

const (
	// streamsPerLayer is how many readers of one layer at a time are followed.
	streamsPerLayer = 4
	// streamSlack is by how much a read may be off the place where its stream goes on: the kernel reads ahead in pieces of 128 KiB,
	// not always in order, and between two files that are read one after the other there may be a small one that is not.
	streamSlack = 128 << 10
	// streamBegins is how much of the data somebody reads before anything is fetched ahead of him. A program that starts reads a few files
	// that lie beside each other, and rarely as much.
	streamBegins = 512 << 10
	// firstWindow is what is fetched ahead then.
	firstWindow = 128 << 10
	// mostWindow is 30 ms at 1 Gbit/s. Up to two windows are on their way.
	mostWindow = 4 << 20
)

// never is a place in a data blob that is not reached.
const never = math.MaxInt64

// stream is a reader that goes through the data blob. Its first reads fetch what they need only. The one that finds something absent
// after streamBegins makes it a stream: a window of compressed bytes is granted to be fetched ahead. When the reader comes to the
// beginning of the window that was granted last, the next one is granted, of double size. A program that reads a little here and there looks
// like a reader that goes on, until it is counted what it has read: half of what lies behind it, or nothing is fetched ahead.
//
//	data   ──────────read─────────┬─────────window─────────┬────────window────────┐
//	                            reader                    mark                  limit
type stream struct {
	// mark and limit are data offsets: who reads between them is told of by reaches. All of the stream that was planned is before limit.
	mark, limit atomic.Int64
	// seen is how many bytes were read from base on, which is where the reader was when that was asked last.
	base, seen atomic.Int64

	// Guarded by the mu of the layer:
	used   time.Time
	pos    int64    // where the furthest of its faults ended
	window int64    // that was granted last, 0: none yet
	credit int64    // compressed bytes that were granted and are not planned
	next   int      // the extent to plan next
	passed numbered // the last one that needed no planning
}

type streams [streamsPerLayer]stream

func (all *streams) init() {
	for i := range all {
		all[i].pos = -never
		all[i].mark.Store(never)
	}
}

// reaches returns the stream whose next window is due, as n bytes at off are read that are present, and whether it is to have that. It says
// so once.
func (all *streams) reaches(off, n int64) (s *stream, more bool) {
	for i := range all {
		s := &all[i]
		if off >= s.base.Load() && off < s.limit.Load() {
			s.seen.Add(n)
		}
		if mark := s.mark.Load(); off+n > mark && off < s.limit.Load() && s.mark.CompareAndSwap(mark, never) {
			return s, s.dense(off + n)
		}
	}
	return nil, false
}

// dense tells of a reader who has come to offset at whether he has read half of his way since that was asked last.
func (s *stream) dense(at int64) bool {
	way, seen := at-s.base.Swap(at), s.seen.Swap(0)
	return way <= streamSlack || 2*seen >= way
}

// miss notes a read of something absent, from and to are data offsets. Its last extent is the one before end, and ends at limit. The
// caller holds mu.
func (all *streams) miss(from, to int64, end int, limit int64) {
	s := all.of(from)
	if s == nil {
		s = all.oldest()
		s.pos, s.window, s.credit, s.next = to, 0, 0, end
		s.limit.Store(limit)
		s.mark.Store(never)
		s.base.Store(from)
		s.seen.Store(to - from)
	} else {
		s.seen.Add(to - from)
		s.pos, s.next = max(s.pos, to), max(s.next, end)
		passed := limit > s.limit.Load()
		if passed {
			s.limit.Store(limit)
		}
		begins := s.window == 0 && to-s.base.Load() < streamBegins
		if !begins && (passed || to > s.mark.Load()) {
			s.grant(s.dense(to))
		}
	}
	s.used = time.Now()
}

// of returns the stream that a read at off continues, or nil.
func (all *streams) of(off int64) *stream {
	for i := range all {
		s := &all[i]
		if s.pos >= 0 && off >= s.pos-streamSlack && off <= s.limit.Load()+streamSlack {
			return s
		}
	}
	return nil
}

func (all *streams) oldest() *stream {
	s := &all[0]
	for i := range all {
		if all[i].used.Before(s.used) {
			s = &all[i]
		}
	}
	return s
}

// grant allows the next window, or no more. The caller holds mu.
func (s *stream) grant(more bool) {
	if !more {
		s.stop()
		return
	}
	s.window = min(max(2*s.window, firstWindow), mostWindow)
	s.credit = s.window
	s.mark.Store(s.limit.Load())
}

// pass says that the stream is planned up to extent next, which begins at or after limit, for cost compressed bytes. The caller holds mu.
func (s *stream) pass(next int, limit, cost int64) {
	s.next = next
	s.credit -= cost
	s.limit.Store(max(s.limit.Load(), limit))
}

// stop ends the fetching ahead until another read follows. The caller holds mu.
func (s *stream) stop() {
	s.window, s.credit = 0, 0
	s.mark.Store(never)
}

// goOn fetches the next window of a stream, or no more.
func (l *Layer) goOn(s *stream, more bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.window == 0 {
		return // it was given to another reader meanwhile
	}
	s.used = time.Now()
	s.grant(more)
	l.kick(ahead)
}
