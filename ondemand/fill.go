package ondemand

import (
	"context"
	"time"
)

const (
	// fillsMost is how many background fills there are at a time if the last is of a layer that is read hard; else it is one, for there
	// is no hurry.
	fillsMost = 2
	// A fill that has failed runs again after firstRetry, which doubles up to mostRetry.
	firstRetry = 10 * time.Second
	mostRetry  = 10 * time.Minute
)

// fill is the state of a background fill.
type fill struct {
	running  bool
	done     bool
	failures int // in a row
	retry    time.Time
}

// hardness is how much of a layer was read of late.
type hardness struct {
	bytes int64     // since the layer was added
	since time.Time // when the burst began
	burst int64     // bytes since then
	hard  bool
	began time.Time // when it became hard
}

const (
	// hardHurry is by how much sooner the rest of a layer is fetched that is read hard, but not before it has been so for startTime: what is
	// fetched beside a program that starts makes it start later.
	hardHurry = 5
	startTime = 10 * time.Second
	// yieldMost is how long a layer that is quiet waits for faults of others to cease before its fill begins.
	yieldMost = time.Minute
	// hardPercent of a layer is so much that a stream of all of it costs little more than the faults for the rest.
	hardPercent = 30
	// hardBytes within hardTime is a program that reads all of its data, and not one that starts.
	hardBytes = 64 << 20
	hardTime  = 5 * time.Second
)

// note adds bytes of a layer of total bytes, and tells whether it is read hard from now on.
func (h *hardness) note(bytes, total int64) bool {
	now := time.Now()
	if now.Sub(h.since) > hardTime {
		h.since, h.burst = now, 0
	}
	h.bytes += bytes
	h.burst += bytes
	if h.hard || h.bytes*100 < total*hardPercent && h.burst < hardBytes {
		return false
	}
	h.hard, h.began = true, now
	return true
}

// noteRead says that bytes have come which a reader wants, or will.
func (l *Layer) noteRead(bytes int64) {
	total := l.blob.Progress().Bytes
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hardness.note(bytes, total) {
		close(l.hard)
		l.engine.wakeFill()
	}
}

// wakeFill has it looked for fills to start.
func (e *Engine) wakeFill() {
	select {
	case e.wakeFills <- struct{}{}:
	default:
	}
}

// scheduleFills starts background fills until ctx ends.
func (e *Engine) scheduleFills(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.wakeFills:
		case <-timer.C:
		}
		timer.Reset(e.startFills())
	}
}

// startFills starts the fills that are due and have a place, and says when the next one may be due. The end of one wakes, too.
func (e *Engine) startFills() (wait time.Duration) {
	all := e.all()
	for {
		now := time.Now()
		wait = e.options.Quiet
		running := 0
		var first *Layer
		var firstState fillState
		for _, l := range all {
			s := l.fillState()
			switch {
			case s.running:
				running++
			case !s.wanted:
			case now.Before(s.due):
				wait = min(wait, s.due.Sub(now))
			case first == nil || s.before(firstState):
				first, firstState = l, s
			}
		}
		if first == nil || running >= fillsMost || running > 0 && !firstState.hard {
			return wait
		}
		first.startFill()
	}
}

// fillState is what the choice of a fill depends on.
type fillState struct {
	running, wanted, hard bool
	due                   time.Time
}

// before tells which of two that are due goes first: one that is read hard.
func (s fillState) before(o fillState) bool {
	if s.hard != o.hard {
		return s.hard
	}
	return s.due.Before(o.due)
}

func (l *Layer) fillState() fillState {
	l.mu.Lock()
	defer l.mu.Unlock()
	wanted := l.o.Complete != nil && !l.fill.done && !l.closed
	s := fillState{running: l.fill.running, wanted: wanted, hard: l.hardness.hard, due: l.fill.retry}
	quiet := l.engine.options.Quiet
	if s.hard {
		quiet /= hardHurry
		s.due = later(s.due, l.hardness.began.Add(startTime))
	}
	all := l.engine.readers.quietSince().Add(quiet)
	if most := l.quietSince.Add(yieldMost); all.After(most) {
		all = most
	}
	s.due = later(s.due, later(l.quietSince.Add(quiet), all))
	return s
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// startFill starts a fill that is due.
func (l *Layer) startFill() {
	l.mu.Lock()
	l.fill.running = true
	l.mu.Unlock()
	l.start(func(ctx context.Context) {
		err := l.o.Complete(ctx, pace{l})
		l.endFill(ctx, err)
		l.engine.wakeFill()
	})
}

func (l *Layer) endFill(ctx context.Context, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &l.fill
	f.running = false
	if err == nil {
		f.done = true
		return
	}
	if ctx.Err() != nil {
		return
	}
	pause := min(firstRetry<<min(f.failures, 10), mostRetry)
	f.failures++
	f.retry = time.Now().Add(pause)
	l.lastError, l.failedAt = err, f.retry.Add(-pause)
	l.counts.failedFills.Add(1)
	l.engine.options.Log.Warn("background fill of a layer failed, will be tried again", "layer", l.o.Name, "retry_in", pause, "cause", err)
}
