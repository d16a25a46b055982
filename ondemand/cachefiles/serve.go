package cachefiles

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// failure is why a device cannot be served any longer.
type failure struct{ error }

// session is the time in which one Serve answers. It owns the objects, whose descriptors end with it.
type session struct {
	d      *Device
	ctx    context.Context // ends with the caller's, by stop, or when the device fails
	abort  context.CancelCauseFunc
	ended  chan struct{}
	work   sync.WaitGroup // READs, and a restore to come
	buffer [messageMost]byte

	// mu is held while a message is read and noted, and while a READ is answered and forgotten: so a message with the number of a READ that
	// is known is the same READ, and not a new one that got its number.
	mu      sync.Mutex
	objects map[uint32]*object // whose descriptor is open
	over    bool               // nothing is answered any more
	again   bool               // a restore is to come
	pause   time.Duration      // before the next restore

	unknown map[keys]unknown // used by the goroutine that reads
}

// Serve answers every message of the kernel until ctx ends, or by Close. It returns nil then, after the last call of an Object has returned,
// and closes the descriptors of all objects. What has no answer by then is left to a successor, here or in another process; the next Serve
// of a Device begins with a restore.
//
// An error means that the device cannot be served. Readers wait until it is closed or served by another.
func (d *Device) Serve(ctx context.Context) error {
	s, again, err := d.begin(ctx)
	if err != nil {
		return fmt.Errorf("serve %s: %w", devicePath, err)
	}
	defer s.end()
	if again {
		if err := d.restore(); err != nil {
			return fmt.Errorf("serve %s again: %w", devicePath, err)
		}
	}
	if err := d.port.wait(s.ctx, s.drain); err != nil {
		s.fail("wait for messages", err)
	}
	return s.err()
}

func (d *Device) begin(ctx context.Context) (s *session, again bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return nil, false, errors.New("it is closed")
	case d.current != nil:
		return nil, false, errors.New("it is being done already")
	case d.o.Lookup == nil:
		return nil, false, errors.New("there is nothing to look objects up with")
	}
	s = &session{d: d, ended: make(chan struct{}), objects: map[uint32]*object{}, pause: restorePause, unknown: map[keys]unknown{}}
	s.ctx, s.abort = context.WithCancelCause(ctx)
	again = d.served
	d.current, d.served = s, true
	return s, again, nil
}

// end closes the descriptors of all objects. READs without an answer keep their place in the kernel, unless it has no restore: then it
// fails them.
func (s *session) end() {
	s.stop()
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.work.Wait()
	for _, o := range s.objects {
		for _, r := range o.reads {
			r.forget()
		}
		o.release()
	}
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	s.d.current = nil
	close(s.ended)
}

// stop has the session end before its caller's context does.
func (s *session) stop() { s.abort(nil) }

// fail ends the session, because nothing can be read any more.
func (s *session) fail(doing string, err error) {
	s.abort(failure{fmt.Errorf("serve %s: %s: %w", devicePath, doing, err)})
}

// err is what fail was told, or nil if the session was meant to end.
func (s *session) err() error {
	var f failure
	if errors.As(context.Cause(s.ctx), &f) {
		return f.error
	}
	return nil
}

// drain handles messages until there is none, or the session ends.
func (s *session) drain() {
	for s.ctx.Err() == nil {
		n, then, err := s.next()
		switch {
		case err != nil:
			s.readFailed(err)
		case n == 0:
			return
		default:
			then()
		}
	}
}

// next reads a message and notes what comes with it, and returns what is to be done about it. n is 0 if there is none.
//
// No program is started between the kernel's making of a descriptor and the flag that keeps it from programs.
func (s *session) next() (n int, then func(), err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err = s.d.port.read(s.buffer[:])
	if n == 0 || err != nil {
		return 0, nil, err
	}
	m, err := parse(s.buffer[:n])
	if err != nil && m.fd != noFile && !s.d.port.isObject(m.fd) {
		m.fd = noFile
	}
	if m.fd != noFile {
		if e := s.d.port.hide(m.fd); e != nil {
			err = fmt.Errorf("%w: OPEN with descriptor %d: %w", errGarbled, m.fd, e)
			m.fd = noFile
		}
	}
	if err != nil {
		return n, s.garbled(m, err), nil
	}
	switch m.opcode {
	case opOpen:
		s.d.counts.opens.Add(1)
		return n, func() { s.open(m) }, nil
	case opClose:
		s.d.counts.closes.Add(1)
		return n, s.closed(m), nil
	default:
		s.d.counts.reads.Add(1)
		return n, s.asked(m), nil
	}
}

// garbled answers what cannot be understood, as far as possible. It is called with mu held.
func (s *session) garbled(m message, err error) func() {
	s.d.counts.garbled.Add(1)
	answer := nothing
	switch {
	case errors.Is(err, errHeadless), m.opcode == opClose:
	case m.opcode == opOpen:
		answer = func() { s.openFailed(m, unix.EINVAL, err) }
	default:
		answer = s.stranger(m, false)
	}
	return func() {
		answer()
		s.d.o.Log.Error("the kernel sent what cannot be understood", "error", err)
	}
}

// refusedPause is how long nothing is read after the kernel could not make a descriptor for an OPEN. It has refused that mount; others had
// better wait until there are descriptors again.
const refusedPause = 10 * time.Millisecond

func (s *session) readFailed(err error) {
	switch {
	case errors.Is(err, unix.EINTR):
	case errors.Is(err, unix.EBADF), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EFAULT), errors.Is(err, unix.EMSGSIZE),
		errors.Is(err, os.ErrClosed):
		s.fail("read a message", err)
	default:
		s.d.counts.refused.Add(1)
		s.d.o.Log.Error("the kernel could not make a descriptor for an object: its mount fails", "error", err)
		s.sleep(refusedPause)
	}
}

func (s *session) sleep(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.ctx.Done():
	}
}
