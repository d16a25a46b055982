package registry

import (
	"errors"
	"io"
	"os"
	"sync"
)

// queue is the ranges of a blob on their way from the network to the reader, in the order of the blob. What has arrived of the first
// one can be read at once. One goroutine appends, one per range adds bytes, and any may read.
type queue struct {
	account *account

	mu      sync.Mutex
	changed sync.Cond // bytes for the reader, or the end
	ranges  []*span
	start   int64 // where ranges[0] begins in the blob
	pos     int   // how much of ranges[0] was read
	err     error // after which nothing is added: io.EOF when all was
}

// span is a range in memory.
type span struct {
	buf     []byte
	charged int64
	arrived int // bytes of buf that may be read
}

func newQueue(a *account) *queue {
	q := &queue{account: a}
	q.changed.L = &q.mu
	return q
}

// append adds a range whose bytes are still to come.
func (q *queue) append(buf []byte) *span {
	s := &span{buf: buf, charged: int64(len(buf))}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ranges = append(q.ranges, s)
	return s
}

// fill reads the rest of a range from r, while the reader may take what has arrived. A nil error says that it is complete.
func (q *queue) fill(s *span, r io.Reader) error {
	for at := s.arrived; at < len(s.buf); {
		n, err := r.Read(s.buf[at:])
		if n > 0 {
			at += n
			q.mu.Lock()
			s.arrived = at
			q.mu.Unlock()
			q.changed.Signal()
			continue
		}
		if err == nil {
			err = io.ErrNoProgress
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	return nil
}

// cut drops what does not follow without a gap, and returns how far the rest goes. No range may be being filled.
func (q *queue) cut() (end int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	end = q.start
	for i, s := range q.ranges {
		end += int64(s.arrived)
		if s.arrived < len(s.buf) {
			s.buf = s.buf[:s.arrived]
			q.drop(i + 1)
			break
		}
	}
	return end
}

// drop gives back the ranges from i on. The caller holds mu.
func (q *queue) drop(i int) {
	for _, s := range q.ranges[i:] {
		q.account.put(s.buf, s.charged)
	}
	q.ranges = q.ranges[:i]
}

// Read waits for bytes. An error other than io.EOF comes at once, before what had arrived.
func (q *queue) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if q.err != nil && !errors.Is(q.err, io.EOF) {
			return 0, q.err
		}
		if n := q.take(p); n > 0 {
			return n, nil
		}
		if q.err != nil {
			return 0, io.EOF
		}
		q.changed.Wait()
	}
}

// take copies what has arrived of the first range that is not read to its end. The caller holds mu.
func (q *queue) take(p []byte) int {
	for len(q.ranges) > 0 {
		first := q.ranges[0]
		n := copy(p, first.buf[q.pos:first.arrived])
		q.pos += n
		if q.pos < len(first.buf) {
			return n
		}
		q.account.put(first.buf, first.charged)
		q.ranges[0] = nil
		q.ranges, q.start, q.pos = q.ranges[1:], q.start+int64(len(first.buf)), 0
		if n > 0 {
			return n
		}
	}
	return 0
}

// end says that nothing more comes: io.EOF after what is there, any other error instead of it. The first error stays, except that a
// reader who is done with what came before io.EOF gets os.ErrClosed after Close. No range may be being filled.
func (q *queue) end(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil || errors.Is(q.err, io.EOF) && (len(q.ranges) > 0 || errors.Is(err, os.ErrClosed)) {
		q.err = err
	}
	if !errors.Is(q.err, io.EOF) {
		q.drop(0)
	}
	q.changed.Broadcast()
}
