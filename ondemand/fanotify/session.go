package fanotify

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// failure is why a group cannot be answered for any longer.
type failure struct{ error }

// session is the time in which one caller answers the events of a group.
type session struct {
	g     *Group
	ctx   context.Context // ends with the caller's, by stop, or when the group fails
	abort context.CancelCauseFunc
	ended chan struct{}
	free  chan int // slots of the journal
	fills sync.WaitGroup
	// inherited is how many events of predecessors wait for their answer. It only gets smaller, and changes with mu held.
	inherited atomic.Int32

	mu    sync.Mutex
	open  map[int]event    // what has no answer yet, by slot, but for what is answered at once
	twins map[int32]*twins // of the inherited events, by number
}

// begin makes a session for Serve or Deny. It is nil if it ended before it began.
func (g *Group) begin(ctx context.Context) (*session, error) {
	if !g.watched {
		return nil, fmt.Errorf("answer for %s: nothing watches it, reads of missing data have passed as zeros", g.data.Name())
	}
	return g.enter(ctx, false)
}

// enter makes a session that has the group for itself, and takes over what the journal holds. Only the last one begins after retire.
func (g *Group) enter(ctx context.Context, last bool) (*session, error) {
	s := &session{g: g, ended: make(chan struct{}), free: make(chan int, slots), open: map[int]event{}, twins: map[int32]*twins{}}
	s.ctx, s.abort = context.WithCancelCause(ctx)
	g.mu.Lock()
	if g.retired && !last {
		g.mu.Unlock()
		return nil, nil
	}
	if g.current != nil {
		g.mu.Unlock()
		return nil, fmt.Errorf("answer for %s: it is being done already", g.data.Name())
	}
	g.current = s
	g.mu.Unlock()

	if err := g.journal.lock(s.ctx); err != nil {
		stopped := s.ctx.Err() != nil
		s.leave()
		if stopped {
			return nil, nil
		}
		return nil, fmt.Errorf("answer for %s: %w", g.data.Name(), err)
	}
	if err := s.inherit(); err != nil {
		s.end()
		return nil, fmt.Errorf("answer for %s: %w", g.data.Name(), err)
	}
	return s, nil
}

// end gives the group back. What has no answer stays in the journal. Descriptors are closed only now that no event can be read that would
// get their number: it would be taken for the one that is still waiting.
func (s *session) end() {
	s.stop()
	s.fills.Wait()
	for _, e := range s.open {
		if e.own {
			rawClose(e.number)
		}
	}
	s.g.journal.unlock()
	s.leave()
}

func (s *session) leave() {
	s.stop()
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	s.g.current = nil
	close(s.ended)
}

// stop has the session end before its caller's context does.
func (s *session) stop() { s.abort(nil) }

// fail ends the session, because nothing can be read or answered any more.
func (s *session) fail(doing string, err error) {
	s.abort(failure{fmt.Errorf("answer for %s: %s: %w", s.g.data.Name(), doing, err)})
}

// err is what fail was told, or nil if the session was meant to end.
func (s *session) err() error {
	var f failure
	if errors.As(context.Cause(s.ctx), &f) {
		return f.error
	}
	return nil
}

// handler gets an event that was read. It returns true if the event has its answer and its slot may be used again.
type handler func(event) bool

// run has events handled until the session ends. A goroutine of an idle group is parked, and the runtime's poller wakes it.
func (s *session) run(handle handler) error {
	conn, err := s.g.group.SyscallConn()
	if err == nil {
		err = s.g.group.SetReadDeadline(time.Time{})
	}
	if err != nil {
		s.fail("wait for events", err)
		return s.err()
	}
	woken := make(chan struct{})
	sleep := context.AfterFunc(s.ctx, func() {
		s.g.group.SetReadDeadline(time.Unix(1, 0))
		close(woken)
	})
	slot := -1
	if err := conn.Read(func(uintptr) bool { return !s.drain(&slot, handle) }); s.ctx.Err() == nil {
		s.fail("wait for events", err)
	}
	if !sleep() {
		<-woken // or it would set the next session's deadline
	}
	return s.err()
}

// drain has events handled until the queue is empty (true) or the session ends. slot is a slot that is taken from one call to the next, or
// -1.
func (s *session) drain(slot *int, handle handler) (empty bool) {
	for s.ctx.Err() == nil {
		if *slot < 0 {
			select {
			case *slot = <-s.free:
			case <-s.ctx.Done():
				return false
			}
		}
		e, ok, err := s.next(*slot)
		switch {
		case err == unix.EAGAIN:
			return true
		case err != nil:
			s.readFailed(err)
		case ok && !handle(e):
			*slot = -1
		}
	}
	return false
}

// next reads an event into a slot. ok is false if what was read needs no answer.
func (s *session) next(slot int) (e event, ok bool, err error) {
	if s.inherited.Load() == 0 {
		return s.read(slot)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok, err = s.read(slot); ok {
		s.join(&e)
	}
	return e, ok, err
}

func (s *session) read(slot int) (e event, ok bool, err error) {
	b := s.g.journal.take(slot)
	if err := rawRead(s.g.fd, b); err != nil {
		return event{}, false, err
	}
	if e, ok, err = parseEvent(b, s.g.size); err != nil {
		return event{}, false, err
	}
	if !ok {
		s.g.counts.notices.Add(1)
		return event{}, false, nil
	}
	e.slot, e.own, e.since = slot, true, time.Now()
	s.g.counts.events.Add(1)
	s.g.counts.asked.Add(uint64(e.n))
	return e, true, nil
}

// refusedPause is how long nothing is read after the kernel could not make a descriptor for an event. It has refused that read; others had
// better wait until there are descriptors again.
const refusedPause = 10 * time.Millisecond

func (s *session) readFailed(err error) {
	switch {
	case errors.Is(err, unix.EINTR):
	case errors.Is(err, unix.EBADF), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EFAULT), errors.Is(err, errForeign):
		s.fail("read an event", err)
	default:
		s.g.counts.refused.Add(1)
		select {
		case <-time.After(refusedPause):
		case <-s.ctx.Done():
		}
	}
}

// settle answers an event, or leaves it to the last of its twins. It returns true if the event's slot may be used again.
func (s *session) settle(e event, v verdict) bool {
	if e.twins != nil {
		s.settleTwin(e.twins, v)
		return false
	}
	if err := s.respond(e.number, v); err != nil {
		s.unanswered(e, err)
		return false
	}
	s.g.journal.free(e.slot)
	rawClose(e.number)
	return true
}

func (s *session) respond(number int32, v verdict) error {
	waited, err := respond(s.g.fd, number, v)
	if err == nil && !waited {
		s.g.counts.late.Add(1)
	}
	return err
}

// unanswered ends the session because the kernel takes no answer. The event stays in the journal.
func (s *session) unanswered(e event, err error) {
	s.began(e)
	s.fail("answer an event", err)
}

// began notes that an event is not answered at once.
func (s *session) began(e event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[e.slot] = e
}

// release has the slot of an event that was answered used again. It is called with mu held.
func (s *session) release(e event) {
	delete(s.open, e.slot)
	s.free <- e.slot // has room for all
}
