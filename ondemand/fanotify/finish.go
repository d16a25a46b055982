package fanotify

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Finish ends the watch of a blob whose data is complete and on stable storage: it removes the mark, lets the reads that wait pass, and
// closes the group. It ends Serve, which returns nil. From then on reads cost what they cost without this package. The keeper's copies
// have to be dropped next: a read that came too late for Finish passes when the last of them is closed.
//
// Closing takes the kernel about two milliseconds. If the mark cannot be removed, nothing has changed and Finish may be called again. After
// any other error the group is closed.
func (g *Group) Finish() error {
	g.ending.Lock()
	defer g.ending.Unlock()
	if g.closed {
		return nil
	}
	err := unix.FanotifyMark(g.fd, unix.FAN_MARK_REMOVE, unix.FAN_PRE_ACCESS, int(g.data.Fd()), "")
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("finish the watch of %s: fanotify_mark: %w", g.data.Name(), err)
	}
	g.retire()
	if err := errors.Join(g.passLeftovers(), g.close()); err != nil {
		return fmt.Errorf("finish the watch of %s: %w", g.data.Name(), err)
	}
	return nil
}

// passLeftovers allows what is in the journal and in the queue. The mark is gone, but an access that has seen it before may still be on
// its way into the queue, which nobody can wait for: closing the group allows it.
func (g *Group) passLeftovers() error {
	s, err := g.enter(context.Background(), true) // nothing here waits but for the lock, which has its own patience
	if err != nil {
		return err
	}
	defer s.end()
	pass := func(e event) bool { return s.settle(e, allow) }
	for _, e := range s.legacy() {
		pass(e)
	}
	slot := -1
	s.drain(&slot, pass)
	return s.err()
}

// Close ends Serve or Deny and closes this process's descriptors of the group and its journal. Unless another process holds the group,
// every read passes from now on: it is right only if a keeper does, or if nothing can read the blob any more. It may be called again.
func (g *Group) Close() error {
	g.ending.Lock()
	defer g.ending.Unlock()
	if g.closed {
		return nil
	}
	g.retire()
	return g.close()
}

// retire ends the session that there is, and sees to it that Serve and Deny begin none.
func (g *Group) retire() {
	g.mu.Lock()
	g.retired = true
	s := g.current
	g.mu.Unlock()
	if s != nil {
		s.stop()
		<-s.ended
	}
}

// close is called with ending held and without a session.
func (g *Group) close() error {
	g.closed = true
	return g.closeFiles()
}

func (g *Group) closeFiles() error {
	var errs []error
	if g.group != nil {
		errs = append(errs, g.group.Close())
	}
	if g.journal != nil {
		errs = append(errs, g.journal.close())
	}
	return errors.Join(errs...)
}
