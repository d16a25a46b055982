package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A keeper is replaced while it runs:
//
//	predecessor                                      successor
//	                                     ◄── hello   connects as successor
//	ends the daemon's connection, and its denying
//	sends everything ──►                 ◄── fetch   if there is a device
//	sends it ──►
//	                                     ◄── taken   has everything
//	yours ──►                                        answers from now on
//	ends                                             the daemon dials again
//
// Until it has sent yours, the predecessor goes on when anything fails, and the successor that has not received it gives up; but if the
// predecessor is dead by then, the successor has what nobody else has, and stays.

// succeedTimeout bounds the taking over. The predecessor may be killing a daemon that hangs.
const succeedTimeout = dialTimeout

// yield hands everything to a successor.
func (s *server) yield(ss *session) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	if s.isReplaced() {
		return errReplaced
	}
	s.log.Info("a successor takes over", "pid", ss.peer.pid)
	err := s.handOver(ss)
	if err != nil {
		s.wake() // to go on denying, if need be
		return fmt.Errorf("hand over to a successor: %w", err)
	}
	if err := notify(fmt.Sprintf("MAINPID=%d", ss.peer.pid)); err != nil {
		s.log.Warn("systemd does not know of the successor", "cause", err)
	}
	close(s.replaced)
	return nil
}

func (s *server) handOver(ss *session) error {
	s.mu.Lock()
	t := s.last
	s.mu.Unlock()
	if t != nil {
		s.part(t)
	}
	s.stopDenying()

	deadline := time.Now().Add(handOutTimeout)
	if err := ss.sendReport(s.report(), deadline); err != nil {
		return err
	}
	if err := s.handOverSocket(ss, deadline); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := s.handOut(ss, deadline); err != nil {
		return err
	}
	if t != nil && !t.hasLeft() {
		if err := ss.send(formerOf(t.process), deadline); err != nil {
			return err
		}
	}
	if err := ss.send(message{kind: end}, deadline); err != nil {
		return err
	}
	ctx, cancel := context.WithDeadline(s.ctx, deadline)
	defer cancel()
	if err := s.handOverDevice(ctx, ss); err != nil {
		return err
	}
	return ss.send(message{kind: yours}, time.Now().Add(ioTimeout))
}

func (s *server) handOverSocket(ss *session, deadline time.Time) error {
	socket, err := numberOf(s.listener.socket)
	if err != nil {
		return err
	}
	lock, err := numberOf(s.listener.lock)
	if err != nil {
		return err
	}
	return ss.send(message{kind: listening, files: []int{socket, lock}}, deadline)
}

// succeed takes over from the keeper that listens, if there is one.
func (s *server) succeed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, succeedTimeout)
	defer cancel()
	c, in, err := dial(ctx, s.o.Address, successor)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take over: %w", err)
	}
	defer c.close()
	if err := s.inherit(in); err != nil {
		return fmt.Errorf("take over: %w", err)
	}
	if err := s.confirm(ctx, c, in.report); err != nil {
		s.listener.close()
		s.letGo()
		return fmt.Errorf("take over from process %d, which goes on: %w", in.report.PID, err)
	}
	s.log.Info("taken over", "from", in.report.PID, "version", in.report.Version)
	return s.listener.sign()
}

// inherit makes what was handed over this keeper's.
func (s *server) inherit(in *handout) (err error) {
	if in.socket < 0 {
		in.close()
		return errors.New("there was no socket among what was handed over")
	}
	s.held, s.secret = in.held, in.secret
	s.away = time.Now().Add(-in.report.Away)
	s.deviceAway = s.away
	if in.former.pidfd >= 0 {
		s.last = &tenant{process: in.former, device: true} // which is not known
	}
	s.listener, err = newListener(s.o.Address, in.socket, os.NewFile(uintptr(in.lock), s.o.Address+".lock"))
	return err
}

// confirm gets the device, if there is one, and tells the predecessor that everything is here. After nil it answers nothing any more.
func (s *server) confirm(ctx context.Context, c *conn, report Report) error {
	predecessor := process{pid: report.PID}
	var err error
	if predecessor.pidfd, err = unix.PidfdOpen(report.PID, 0); err != nil {
		return fmt.Errorf("pidfd of process %d: %w", report.PID, err)
	}
	defer predecessor.close()
	if report.Device != "" {
		s.device, err = c.fetchDevice(ctx)
	}
	if err == nil {
		err = c.sendNow(ctx, message{kind: taken})
	}
	if err == nil {
		err = c.wait(ctx, yours)
	}
	if err != nil && predecessor.waitGone(ctx, time.Second, nil) {
		s.log.Warn("the predecessor ended while it handed over", "cause", err)
		return nil
	}
	return err
}
