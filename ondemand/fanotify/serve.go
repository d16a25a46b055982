package fanotify

import (
	"context"
	"errors"
	"time"
)

// Serve answers every event of the group with the help of f, beginning with those that a predecessor left, until ctx ends, or by Finish or
// Close. It returns nil then, after the last call of f has returned. What has no answer by then is left to a successor, here or in another
// process. It waits for another process that answers this group, which is thought to be dying.
//
// An error means that the group cannot be served. Readers wait, and a keeper may answer them.
func (g *Group) Serve(ctx context.Context, f Filler) error {
	s, err := g.begin(ctx)
	if s == nil {
		return err
	}
	defer s.end()
	handle := func(e event) bool { return s.supply(e, f) }
	for _, e := range s.legacy() {
		handle(e)
	}
	return s.run(handle)
}

// supply answers at once if the data is there. Otherwise it has it filled.
func (s *session) supply(e event, f Filler) bool {
	if e.n == 0 || f.Ready(e.off, e.n) {
		s.g.counts.hits.Add(time.Since(e.since))
		return s.settle(e, allow)
	}
	if e.twins == nil {
		s.began(e)
	}
	s.fills.Go(func() { s.fill(e, f) })
	return false
}

func (s *session) fill(e event, f Filler) {
	v := allow
	if err := f.Fill(s.ctx, e.off, e.n); err != nil {
		if s.ctx.Err() != nil {
			return // not f's failure: the successor fills it
		}
		v = refuse
		if !errors.Is(err, ErrSelfTest) {
			s.g.counts.failed.Add(1)
		}
	} else {
		s.g.counts.fills.Add(time.Since(e.since))
	}
	if s.settle(e, v) {
		s.mu.Lock()
		s.release(e)
		s.mu.Unlock()
	}
}

// Deny answers every event of the group with an I/O error, beginning with those that a predecessor left, until ctx ends, and says how
// many those were. It is for a group that cannot be served. Each answer is given at once, so nothing is left when it returns. It fails if
// another process answers, or has the right to and only does not: two must not answer one group.
func (g *Group) Deny(ctx context.Context) (denied int, err error) {
	s, err := g.begin(ctx)
	if s == nil {
		return 0, err
	}
	defer s.end()
	handle := s.denier(&denied)
	for _, e := range s.legacy() {
		handle(e)
	}
	return denied, s.run(handle)
}

// DenyWaiting is Deny for what waits now, for a keeper whose daemon does not come back: it has many groups, and no goroutine for each. It
// returns when nothing waits, or after as many events as there are slots, for other groups have readers too.
func (g *Group) DenyWaiting(ctx context.Context) (denied int, err error) {
	s, err := g.begin(ctx)
	if s == nil {
		return 0, err
	}
	defer s.end()
	deny := s.denier(&denied)
	for _, e := range s.legacy() {
		deny(e)
	}
	slot := -1
	s.drain(&slot, func(e event) bool {
		free := deny(e)
		if denied >= slots {
			s.stop()
		}
		return free
	})
	return denied, s.err()
}

// denier refuses events, and counts them.
func (s *session) denier(denied *int) handler {
	return func(e event) bool {
		*denied++
		s.g.counts.failed.Add(1)
		return s.settle(e, refuse)
	}
}
