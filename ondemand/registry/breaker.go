package registry

import (
	"log/slog"
	"sync"
	"time"
)

const (
	// breakerFailures in a row are more than one lost connection that all ranges of a blob shared.
	breakerFailures = 5
	// breakerPause is how long others are asked first. A restarted mirror is used again soon after.
	breakerPause = 10 * time.Second
)

// breaker remembers whether a host answers at all. It refuses nothing: an open host is asked last.
//
//	closed ──5 failures──► open ──10 s──► half-open ──success──► closed
//	                        ▲──────────────failure───┘
type breaker struct {
	log *slog.Logger
	now func() time.Time

	mu       sync.Mutex
	failures int       // in a row
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
	// Should the one who tries never say how it went, another may after a pause.
	b.trying, b.until = true, b.now().Add(breakerPause)
	return true
}

func (b *breaker) worked() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures >= breakerFailures {
		b.log.Info("registry host answers again")
	}
	b.failures, b.until, b.trying = 0, time.Time{}, false
}

// failed notes a failure. A host that asked to be left alone is, for at least that long.
func (b *breaker) failed(after time.Duration, cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures++
	b.trying = false
	pause := after
	if b.failures >= breakerFailures {
		pause = max(pause, breakerPause)
	}
	if pause > 0 {
		b.until = b.now().Add(pause)
	}
	if b.failures == breakerFailures {
		b.log.Warn("registry host fails; others are asked first", "cause", cause)
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
