package ondemand

import (
	"math"
	"slices"
	"time"
)

// demand is a fault that waits. It is guarded by the mu of the layer, but for what never changes.
type demand struct {
	off, n int64
	since  time.Time
	end    int // after its last extent
	// Those before first are present, and those before planned are present or on their way.
	first, planned int
	finished       bool
	done           chan error // gets one value
}

func (d *demand) wants(i int) bool { return d.first <= i && i < d.end }

func (d *demand) finish(err error) {
	if !d.finished {
		d.finished = true
		d.done <- err
	}
}

// want makes a fault wait for extents, and has them fetched.
func (l *Layer) want(off, n int64, first, end int) (*demand, error) {
	last, err := l.blob.Extents(end-1, end)
	if err != nil {
		return nil, err
	}
	l.engine.readers.come()
	l.places.ask(l)
	d := &demand{off: off, n: n, since: time.Now(), first: first, planned: first, end: end, done: make(chan error, 1)}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.quietSince = d.since
	l.demands = append(l.demands, d)
	if l.settle(d); d.finished {
		return d, nil
	}
	l.raise(d)
	l.streams.miss(off, min(off, math.MaxInt64-n)+n, end, last[0].End())
	l.kick(fault)
	l.kick(ahead)
	return d, nil
}

// unwant is called when the fault was answered.
func (l *Layer) unwant(d *demand) {
	l.mu.Lock()
	if i := slices.Index(l.demands, d); i >= 0 {
		l.demands = slices.Delete(l.demands, i, i+1)
	}
	l.quietSince = time.Now()
	l.mu.Unlock()
	l.engine.readers.leave()
}

// settle finds out whether what a fault wants is there. The caller holds mu.
func (l *Layer) settle(d *demand) {
	d.first = l.blob.NextAbsent(d.first, d.end)
	if d.first == d.end {
		d.finish(nil)
		return
	}
	if d.first < d.planned && l.flying[d.first] == nil {
		d.planned = d.first // it was present, and was lost with a sync that failed
		l.kick(fault)
	}
}

// raise makes requests faults for which a fault has begun to wait. The caller holds mu.
func (l *Layer) raise(d *demand) {
	raised := false
	for i, r := range l.flying {
		if d.wants(i) && class(r.class.Swap(int32(fault))) != fault {
			raised = true
		}
	}
	if raised {
		l.origin.slots.review()
		l.engine.memory.review()
		l.engine.processors.review()
	}
}

// impatience is how long a fault waits for what another one has just waited for in vain. The kernel asks several times for what a reader
// wants once: for what it reads ahead, and again for the page. All of that together should not take much longer than the deadline.
const impatience = 100 * time.Millisecond

// vain is extents for which a fault has waited in vain, and until when that is remembered. All is forgotten when something comes.
type vain struct {
	first, end int
	until      time.Time
}

// patience is how long a fault waits: the deadline, unless another one has just waited in vain for what it needs first.
func (l *Layer) patience(d *demand) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	deadline, now := l.engine.options.Deadline, time.Now()
	for _, v := range l.vain {
		if v.first <= d.first && d.first < v.end && now.Before(v.until) {
			return min(deadline, impatience)
		}
	}
	return deadline
}

// noteExpired notes that a fault has waited in vain. That is remembered for half of the deadline, and not for longer because of faults that
// were not patient.
func (l *Layer) noteExpired(d *demand) {
	l.mu.Lock()
	defer l.mu.Unlock()
	deadline, now := l.engine.options.Deadline, time.Now()
	if now.Sub(d.since) < deadline {
		return
	}
	l.vain = slices.DeleteFunc(l.vain, func(v vain) bool { return !now.Before(v.until) })
	l.vain = append(l.vain, vain{d.first, d.end, now.Add(deadline / 2)})
}
