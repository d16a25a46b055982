package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// session is one connection.
type session struct {
	*conn
	peer     process
	released chan struct{} // closed when the daemon has said that it reads nothing any more
	over     chan struct{} // closed when the session has ended
}

// serve talks to one connection until it ends.
func (s *server) serve(c *conn) {
	as, err := c.receiveHello()
	peer, peerErr := c.peerOf()
	if peerErr != nil {
		s.refuse(c, 0, peerErr)
		return
	}
	ss := &session{conn: c, peer: peer, released: make(chan struct{}), over: make(chan struct{})}
	defer close(ss.over)
	if err == nil {
		err = s.serveAs(ss, as)
	}
	if err != nil && !s.isReplaced() { // then it hangs up at once: the other side dials again, and finds the successor
		s.refuse(c, peer.pid, err)
	}
	if !s.isTenant(ss) {
		peer.close()
	}
}

func (c *conn) receiveHello() (role, error) {
	m, err := c.receive(time.Now().Add(ioTimeout))
	closeAll(m.files) // it has none
	if err != nil {
		return 0, fmt.Errorf("no hello: %w", err)
	}
	return parseHello(m)
}

func (s *server) serveAs(ss *session, as role) error {
	switch as {
	case observer:
		s.inform(ss)
		return nil
	case successor:
		return s.yield(ss)
	}
	if err := s.admit(ss, as); err != nil {
		return err
	}
	s.serveDaemon(ss)
	return nil
}

// refuse tells the other side why it gets nothing.
func (s *server) refuse(c *conn, pid int, err error) {
	if s.ctx.Err() == nil {
		s.log.Warn("a process is refused", "pid", pid, "cause", err)
	}
	_ = c.send(ackOf(0, err), time.Now().Add(ioTimeout)) // it may be gone
}

// inform answers an observer, for which nothing is done if it has gone.
func (s *server) inform(ss *session) {
	deadline := time.Now().Add(ioTimeout)
	if ss.sendReport(s.report(), deadline) != nil {
		return
	}
	if s.sendNames(ss, deadline) == nil {
		_ = ss.send(message{kind: end}, deadline)
	}
}

func (s *server) sendNames(ss *session, deadline time.Time) error {
	for _, name := range s.names() {
		if err := ss.send(message{kind: named, name: name}, deadline); err != nil {
			return err
		}
	}
	return nil
}

func (c *conn) sendReport(r Report, deadline time.Time) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return c.send(message{kind: welcome, body: body}, deadline)
}

// serveDaemon does what the daemon wants until its connection ends.
func (s *server) serveDaemon(ss *session) {
	defer s.lost(ss)
	for {
		m, err := ss.receive(time.Time{})
		var answer message
		switch {
		case errors.Is(err, errCut) && (m.kind == hold || m.kind == secret || m.kind == device):
			// That is no reason to part: the daemon has it, and may try again.
		case err != nil:
			if !hasEnded(err) {
				s.log.Error("the daemon's connection is ended", "pid", ss.peer.pid, "cause", err)
			}
			return
		case m.kind == released:
			close(ss.released)
			return
		}
		s.countAnswering(1)
		if err == nil && m.kind == fetch {
			answer, err = s.giveDevice(ss, m.id)
		} else if err == nil {
			err = s.do(ss, m)
		}
		if errors.Is(err, errSuperseded) {
			s.countAnswering(-1)
			continue // its acks cannot be sent any more, and only released matters
		}
		if err != nil || m.kind != fetch {
			answer = ackOf(m.id, err)
		}
		err = ss.send(answer, time.Now().Add(ioTimeout))
		s.countAnswering(-1)
		if err != nil {
			if !hasEnded(err) {
				s.log.Error("the daemon's connection is ended: it takes no answers", "pid", ss.peer.pid, "cause", err)
			}
			return
		}
	}
}

// countAnswering counts requests that have no answer yet: a keeper that holds nothing any more ends, but not before it has said so.
func (s *server) countAnswering(n int) {
	s.mu.Lock()
	s.answering += n
	s.mu.Unlock()
	s.wake()
}

// hasEnded tells whether an error of a connection says no more than that one of its sides has ended, perhaps by a kill.
func hasEnded(err error) bool {
	for _, end := range []error{io.EOF, os.ErrClosed, unix.EPIPE, unix.ECONNRESET} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// errSuperseded is about a request that came too late.
var errSuperseded = errors.New("another daemon has taken over")

// do does what a request of the daemon wants. The descriptors that came with it are kept or closed.
func (s *server) do(ss *session, m message) error {
	change := s.change
	if m.kind == device {
		change = s.changeDevice
	}
	put, err := change(ss, m)
	closeAll(put) // without mu: the kernel takes two milliseconds to close the last descriptor of a group
	return err
}

// change makes the change that m wants, and returns the descriptors that have to be closed.
func (s *server) change(ss *session, m message) (put []int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil || s.last.session != ss {
		return m.files, errSuperseded
	}
	switch m.kind {
	case hold:
		return s.hold(m)
	case drop:
		e, known := s.held[m.name]
		if !known {
			return m.files, nil
		}
		delete(s.held, m.name)
		return e.files[:], nil
	case secret:
		if len(m.files) == 0 {
			s.setSecret(-1)
			return nil, nil
		}
		if _, err := sealedSize(m.files[0]); err != nil {
			return m.files, fmt.Errorf("learned credentials: %w", err)
		}
		s.setSecret(m.files[0])
		return nil, nil
	}
	return m.files, fmt.Errorf("no daemon sends messages of kind %d", m.kind)
}

// hold is called with mu held.
func (s *server) hold(m message) (put []int, err error) {
	e := entryOf(m)
	old, known := s.held[m.name]
	switch {
	case s.over:
		return m.files, errors.New("the keeper is ending")
	case !known && len(s.held) >= MaxHeld:
		return m.files, fmt.Errorf("%d blobs are held already", len(s.held))
	case !known:
	case !old.is(e):
		return m.files, errors.New("another group is held under that name\n  drop it first, if nothing is mounted that it watches")
	default:
		put = old.files[:]
	}
	s.held[m.name] = e
	return put, nil
}

// lost notes that the daemon's connection has ended.
func (s *server) lost(ss *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.last
	if t == nil || t.session != ss {
		return // superseded, and taken care of
	}
	t.connected = false
	s.away = time.Now()
	if t.device {
		s.deviceAway = s.away
	}
	s.log.Info("the daemon's connection has ended", "pid", t.pid, "held", len(s.held), "device", s.device.held())
	s.wake()
}

// handOut sends everything that is held. Nobody else changes it meanwhile.
func (s *server) handOut(ss *session, deadline time.Time) error {
	for _, name := range s.names() {
		s.mu.Lock()
		e := s.held[name]
		s.mu.Unlock()
		if err := ss.send(message{kind: held, name: name, body: e.note, files: e.files[:]}, deadline); err != nil {
			return fmt.Errorf("hand out %s: %w", name, err)
		}
	}
	s.mu.Lock()
	m := message{kind: secret}
	if s.secret >= 0 {
		m.files = []int{s.secret}
	}
	s.mu.Unlock()
	if err := ss.send(m, deadline); err != nil {
		return fmt.Errorf("hand out learned credentials: %w", err)
	}
	return nil
}

// isTenant says whether the session's process has the role.
func (s *server) isTenant(ss *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last != nil && s.last.session == ss
}

// wait waits for a message of one kind.
func (c *conn) wait(ctx context.Context, k kind) error {
	interrupt := context.AfterFunc(ctx, c.interrupt)
	defer interrupt()
	_, err := c.expectNow(ctx, k)
	return err
}
