package cachefiles

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// readsMost is how many READs of one object are served at a time. Others wait, each of them a reader of that object.
	readsMost = 64
	// fillMost is how much of a READ is served. The kernel asks again for what is behind it.
	fillMost = 1 << 20

	// A restore follows a READ that could not be answered after restorePause, which doubles up to restoreMost.
	restorePause = 100 * time.Millisecond
	restoreMost  = 5 * time.Second
)

var (
	errDeadline = errors.New("not served within the deadline")
	errClosed   = errors.New("closed by the kernel")
	errBeyond   = errors.New("beyond the end of the object")
	errDenied   = errors.New("nobody is there who has the data")
)

// read is a READ that the kernel waits for.
type read struct {
	o      *object
	id     uint32
	off, n int64 // what is served of it: whole pages
	since  time.Time
	ctx    context.Context
	end    context.CancelFunc
	timer  *time.Timer
	done   bool // answered; guarded by the session's mu
}

// forget ends what is done for a READ.
func (r *read) forget() {
	r.end()
	if r.timer != nil {
		r.timer.Stop()
	}
}

// asked notes a READ and begins with it. It is called with mu held.
func (s *session) asked(m message) func() {
	s.d.counts.asked.Add(m.n)
	o := s.objects[m.object]
	if o == nil || o.gone {
		s.d.counts.strangers.Add(1)
		return s.stranger(m, true)
	}
	if _, ok := o.reads[m.id]; ok {
		s.d.counts.repeated.Add(1)
		return nothing
	}
	r := &read{o: o, id: m.id, since: time.Now()}
	r.ctx, r.end = context.WithCancel(s.ctx)
	o.reads[m.id] = r
	var ok bool
	if r.off, r.n, ok = pagesOf(m.off, m.n, o.size); !ok {
		err := fmt.Errorf("%d bytes at %d: %w, which has %d", m.n, m.off, errBeyond, o.size)
		return func() { s.answer(r, err) }
	}
	if err := o.failedAt(r.off); err != nil {
		return func() { s.answer(r, fmt.Errorf("asked once more: %w", err)) }
	}
	r.timer = time.AfterFunc(s.d.o.Deadline, func() { s.answer(r, errDeadline) })
	if o.active == readsMost {
		o.queue = append(o.queue, r)
		return nothing
	}
	o.active++
	return func() { s.work.Go(func() { s.serve(r) }) }
}

// pagesOf returns the pages of a range, as far as they are served at a time and not beyond the one with the end of the object.
func pagesOf(off, n uint64, size int64) (int64, int64, bool) {
	page := uint64(pageBytes)
	if off >= uint64(size) || n == 0 {
		return 0, 0, n == 0
	}
	from := off &^ (page - 1)
	end := (uint64(size) + page - 1) &^ (page - 1)
	n = min(n, math.MaxInt64) + off - from
	length := min((n+page-1)&^(page-1), end-from, fillMost)
	return int64(from), int64(length), true
}

// serve answers READs of an object until none is left that has to wait for another one.
func (s *session) serve(r *read) {
	for r != nil {
		if err := s.supply(r); err == nil || s.ctx.Err() == nil { // or it is not the Object's failure: the successor answers
			s.answer(r, err)
		}
		r = s.after(r)
	}
}

// after returns the next READ of the object. If there is none, and the kernel has closed it, it is released.
func (s *session) after(r *read) *read {
	o := r.o
	s.mu.Lock()
	if len(o.queue) > 0 && !s.over && s.ctx.Err() == nil {
		next := o.queue[0]
		o.queue = o.queue[1:]
		s.mu.Unlock()
		return next
	}
	o.active--
	last := o.gone && o.active == 0
	if last {
		delete(s.objects, o.id)
	}
	s.mu.Unlock()
	if last {
		o.release()
	}
	return nil
}

// supply writes what a READ asks for.
func (s *session) supply(r *read) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	if r.n == 0 {
		return nil
	}
	if err := r.o.source.Fill(r.ctx, r.off, min(r.n, r.o.size-r.off)); err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	b, err := s.d.buffers.get(r.ctx)
	if err != nil {
		return err
	}
	defer s.d.buffers.put(b)
	for at := r.off; at < r.off+r.n; at += chunkBytes {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		if err := s.copy(r.o, b[:min(chunkBytes, r.off+r.n-at)], at); err != nil {
			return err
		}
	}
	return nil
}

// copy writes len(b) bytes of the cache file. What is behind the end of the object is zeros.
func (s *session) copy(o *object, b []byte, at int64) error {
	data := b[:min(int64(len(b)), o.size-at)]
	if n, err := o.source.ReadAt(data, at); n != len(data) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read what was filled: %d of %d bytes at %d: %w", n, len(data), at, err)
	}
	clear(b[len(data):])
	for len(b) > 0 {
		n, err := s.d.port.pwrite(o.fd, b, at)
		if n > 0 && n <= len(b) {
			s.d.counts.written.Add(uint64(n))
		}
		switch {
		case err != nil:
			return fmt.Errorf("write %d bytes at %d: %w", len(b), at, err)
		case n <= 0 || n > len(b) || n%pageBytes != 0:
			return fmt.Errorf("write %d bytes at %d: the kernel took %d", len(b), at, n)
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// answer tells the kernel that a READ has been served, or has failed, which is the same: it looks at what is there.
func (s *session) answer(r *read, err error) {
	s.mu.Lock()
	log := s.settle(r, err)
	s.mu.Unlock()
	log()
}

func nothing() {}

// settle is answer with mu held, and returns what is to be logged without it. Only the first answer counts, and nothing is answered when
// the session is over.
func (s *session) settle(r *read, err error) (log func()) {
	if r.done || s.over {
		return nothing
	}
	r.done = true
	delete(r.o.reads, r.id)
	r.forget()
	failed := s.count(r, err)
	switch e := s.d.port.complete(r.o.fd, r.id); {
	case e == nil:
	case errors.Is(e, unix.EINVAL):
		s.d.counts.late.Add(1)
	default:
		s.d.counts.unanswered.Add(1)
		return func() {
			failed()
			r.o.log().Error("the kernel takes no answer to a read", "offset", r.off, "length", r.n, "error", e)
		}
	}
	return failed
}

func (s *session) count(r *read, err error) (log func()) {
	c := &s.d.counts
	switch {
	case err == nil:
		c.answers.Add(time.Since(r.since))
		return nothing
	case errors.Is(err, errClosed):
		return nothing
	case errors.Is(err, errDenied):
		c.failed.Add(1)
		return nothing // one for each READ would say no more
	case errors.Is(err, errDeadline):
		c.expired.Add(1)
	case noRoom(err):
		c.noRoom.Add(1)
		err = fmt.Errorf("%w (the disk of the cache is full, or has less free space than the limits: make room)", err)
	}
	c.failed.Add(1)
	r.o.remember(r, err)
	more, ok := r.o.mayLog()
	if !ok {
		return nothing
	}
	after := time.Since(r.since)
	return func() {
		r.o.log().Error("a read fails", "offset", r.off, "length", r.n, "after", after, "others", more, "error", err)
	}
}

// stranger answers a message that belongs to no object of this process, or cannot be understood. Its object's descriptor would do, and for
// old kernels an OPEN's answer with an error does. If nothing does, again says whether it may help to have the kernel show it again: another
// process has the descriptor, and will end. It is called with mu held.
func (s *session) stranger(m message, again bool) func() {
	if o := s.objects[m.object]; o != nil && s.d.port.complete(o.fd, m.id) == nil {
		return nothing
	}
	return func() {
		err := s.d.port.write([]byte(copen(m.id, -int64(unix.EIO))))
		if err == nil {
			return
		}
		s.d.counts.unanswered.Add(1)
		s.d.o.Log.Warn("no answer is possible to a request of the kernel", "message", m.id, "opcode", m.opcode, "object", m.object,
			"object of another process", again, "error", err)
		if again {
			s.restoreLater()
		}
	}
}

// restoreLater has the kernel show again what has no answer, after a pause in which a predecessor may end.
func (s *session) restoreLater() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.again || s.over || s.ctx.Err() != nil {
		return
	}
	s.again = true
	pause := s.pause
	s.pause = min(2*pause, restoreMost)
	s.work.Go(func() {
		s.sleep(pause)
		s.mu.Lock()
		s.again = false
		s.mu.Unlock()
		if s.ctx.Err() != nil {
			return
		}
		if err := s.d.restore(); err != nil {
			s.d.o.Log.Error("a request stays without an answer", "error", err)
		}
	})
}
