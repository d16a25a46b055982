package keeper

import (
	"context"
	"errors"
	"time"
)

// errAbandoned is about a daemon that has hung up before it got anything.
var errAbandoned = errors.New("the other side has hung up")

// errReplaced is about what came after a successor took over.
var errReplaced = errors.New("the keeper has been replaced")

// admit gives the role to a daemon, with everything that is held. Before that, nobody else reads any group.
func (s *server) admit(ss *session, as role) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	if s.isReplaced() {
		return errReplaced
	}
	if ss.isAbandoned() { // it has given up while somebody else had the turn, or this process did not run
		return errAbandoned
	}
	if as == returning && !s.mayReturn(ss.peer) {
		_ = ss.send(message{kind: leave}, time.Now().Add(ioTimeout)) // it may be gone
		return errSuperseded
	}
	has := s.mayHaveDevice(ss.peer, as)
	if err := s.retire(ss.peer, s.grace); err != nil {
		return err
	}
	s.stopDenying()
	s.mu.Lock()
	s.last = &tenant{process: ss.peer, session: ss, connected: true, device: has}
	s.deviceAway = time.Now() // unless it has it, it may still ask
	blobs, credentials, cache := len(s.held), s.secret >= 0, s.device.held()
	s.mu.Unlock()
	s.wake() // it may never ask for the device

	deadline := time.Now().Add(handOutTimeout)
	err := ss.sendReport(s.report(), deadline)
	switch {
	case err != nil:
	case as == returning:
		err = s.sendNames(ss, deadline)
	default:
		err = s.handOut(ss, deadline)
	}
	if err == nil {
		err = ss.send(message{kind: end}, deadline)
	}
	if err != nil { // it may have begun to read
		s.lost(ss)
		return err
	}
	s.log.Info("a daemon is served", "pid", ss.peer.pid, "held", blobs, "device", cache, "credentials", credentials)
	return nil
}

// mayReturn tells whether nobody else has had the role since p had it.
func (s *server) mayReturn(p process) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last == nil || s.last.is(p)
}

// mayHaveDevice tells whether p has the device from when it had the role before. One that returns has everything that it has held.
func (s *server) mayHaveDevice(p process, as role) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil || !s.last.is(p) {
		return as == returning
	}
	return s.last.device && !s.last.hasLeft()
}

// retire makes sure that whoever had the role does not read anything any more: it has exited, or said so within the grace, or is killed. If
// it is the process that next comes, there is nothing to make sure: it knows what it reads. An error means that nobody else may have the
// role now. It is called with turn held.
func (s *server) retire(next process, grace time.Duration) error {
	s.mu.Lock()
	t := s.last
	s.mu.Unlock()
	if t == nil {
		return nil
	}
	if !t.is(next) {
		if err := s.leave(t, grace); err != nil {
			return err
		}
	}
	s.part(t)
	s.mu.Lock()
	s.last = nil
	s.mu.Unlock()
	t.close()
	return nil
}

// leave has a daemon leave, or kills it.
func (s *server) leave(t *tenant, grace time.Duration) error {
	if t.session != nil {
		// It may have gone, or hang, or have been told before.
		_ = t.session.send(message{kind: leave}, time.Now().Add(time.Second))
		t.session.hangUp()
	}
	if t.waitGone(s.ctx, grace, t.released()) {
		return nil
	}
	if s.ctx.Err() != nil {
		return errReplaced
	}
	s.log.Warn("the former daemon is killed: it may still answer for what is held", "pid", t.pid)
	return t.kill(s.ctx)
}

// released is closed when the daemon has said that it reads nothing any more.
func (t *tenant) released() <-chan struct{} {
	if t.session == nil {
		return nil
	}
	return t.session.released
}

// hasLeft tells whether the daemon has exited, or said that it reads nothing any more.
func (t *tenant) hasLeft() bool {
	select {
	case <-t.released():
		return true
	default:
		return t.gone()
	}
}

// part ends the connection of a daemon, and with it all changes of what is held.
func (s *server) part(t *tenant) {
	if t.session != nil {
		t.session.close()
		<-t.session.over
	}
}

// watch looks after the absence of daemons, until the keeper may end. After the signal it only waits for that.
func (s *server) watch(ctx context.Context) {
	signal, told := ctx.Done(), false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-signal:
			signal, told = nil, true
			s.toldToEnd()
		case <-s.replaced:
			s.log.Info("a successor has everything")
			return
		case <-s.changed:
		case <-timer.C:
		}
		if told && s.mayEnd() {
			return
		}
		wait := s.lookAway()
		if told {
			wait = min(wait, endPoll)
		}
		timer.Reset(wait)
	}
}

const (
	// idleWait is when the state is looked at though nothing has happened.
	idleWait = time.Hour
	// retryWait is when something is tried again that failed.
	retryWait = time.Second
)

// lookAway begins to deny when the daemon has been away for too long, and returns when to look again.
func (s *server) lookAway() time.Duration {
	left := s.patienceLeft()
	if left > 0 {
		return left
	}
	if err := s.startDenying(); err != nil {
		s.log.Error("readers of missing data wait: nobody can answer", "cause", err)
		return retryWait
	}
	return max(s.patienceLeft(), retryWait/10) // the groups and the device may be due at different times
}

// patienceLeft is for how long nobody has to be looked after.
func (s *server) patienceLeft() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := idleWait
	groups, device := s.forsaken()
	for _, since := range []time.Duration{groups, device} {
		if since != attended {
			left = min(left, s.o.Patience-since)
		}
	}
	return left
}

// attended says that somebody answers, or nothing is held.
const attended time.Duration = -1

// forsaken tells for how long nobody has answered for the groups that are held, and for the device. It is called with mu held.
func (s *server) forsaken() (groups, device time.Duration) {
	groups, device = attended, attended
	served := s.last != nil && s.last.connected
	if len(s.held) > 0 && !served && s.denial == nil {
		groups = time.Since(s.away)
	}
	if s.device.held() && !(served && s.last.device) && s.deviceDenial == nil {
		device = time.Since(s.deviceAway)
	}
	return groups, device
}
