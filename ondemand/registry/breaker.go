package registry

import (
	"log/slog"
	"sync"
	"time"
)

const (
	// breakerFailures in a row are more than one lost connection that all ranges of a blob shared.
	breakerFailures = 5
	// breakerPause is how long others are asked first. A restarted mirror is used again soon after. The pause doubles with each trial that
	// fails, up to breakerMost: one that never answers costs the range that tries it all of the stall timeout.
	breakerPause = 10 * time.Second
	breakerMost  = 2 * time.Minute
)

// breaker remembers whether a host answers at all. It refuses nothing: an open host is asked last.
//
//	closed ──5 failures or 1 stall──► open ──10 s or more──► half-open ──success──► closed
//	                                   ▲──────────────────────failure───┘
type breaker struct {
	log *slog.Logger
	now func() time.Time

	mu       sync.Mutex
	failures int // in a row
	pause    time.Duration
	until    time.Time // open until then; zero if closed
	trying   bool      // half-open: one request is out
}

// ready tells whether the host is to be asked in its turn. In the half-open state the first who asks gets true, and is expected to try.
func (b *breaker) ready() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.until.IsZero():
		return true
	case b.now().Before(b.until):
		return false
	}
	// Should the one who tries never say how it went, another may after the longest pause.
	b.trying, b.until = true, b.now().Add(breakerMost)
	return true
}

func (b *breaker) worked() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures >= breakerFailures {
		b.log.Info("registry host answers again")
	}
	b.failures, b.pause, b.until, b.trying = 0, 0, time.Time{}, false
}

// failed notes a failure. A host that asked to be left alone is, for at least that long. A stall counts for all failures that it takes:
// it has cost as much time as no number of resets.
func (b *breaker) failed(f *failure) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.failures
	if b.failures++; f.kind == kindStalled {
		b.failures += breakerFailures
	}
	switch open := b.failures >= breakerFailures; {
	case open && b.trying:
		b.pause = min(2*b.pause, breakerMost)
	case open:
		b.pause = max(b.pause, breakerPause)
	}
	b.trying = false
	if pause := max(b.pause, f.after); pause > 0 {
		b.until = b.now().Add(pause)
	}
	if before < breakerFailures && b.failures >= breakerFailures {
		b.log.Warn("registry host fails; others are asked first", "cause", f)
	}
}

func (b *breaker) state() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.until.IsZero():
		return "closed"
	case b.trying, !b.now().Before(b.until):
		return "half-open"
	}
	return "open"
}
