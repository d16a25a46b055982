package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// pieceBytes is how much paced work reads at a time. A slow link carries it within the stall timeout.
const pieceBytes = 64 << 10

// progressBytes is how much must come for a host to count as one that sends: less within the stall timeout is a stall, and less from an
// attempt that failed is as good as nothing. Else a byte now and then would keep a pull alive for ever. Four connections with
// no more than that are a link of 17 kbit/s.
const progressBytes = 16 << 10

var (
	errStalled = errors.New("no byte within the stall timeout")
	errTrickle = errors.New("hardly a byte within the stall timeout")
)

// stall cancels a request that makes no progress. It runs while we wait for the host, not while the host waits for us.
type stall struct {
	ctx    context.Context // of the request
	cancel context.CancelCauseFunc
	limit  time.Duration
	timer  *time.Timer
	left   time.Duration // of limit, when it was last started
	since  time.Time     // when that was
	came   atomic.Int64  // bytes since left was all of limit
}

// newStall returns a running stall.
func newStall(ctx context.Context, limit time.Duration) *stall {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &stall{ctx: ctx, cancel: cancel, limit: limit, left: limit, since: time.Now()}
	s.timer = time.AfterFunc(limit, func() {
		cause := errStalled
		if s.came.Load() > 0 {
			cause = errTrickle
		}
		cancel(fmt.Errorf("%w of %v", cause, limit))
	})
	return s
}

// start lets it run for what is left of the limit.
func (s *stall) start() {
	s.since = time.Now()
	s.timer.Reset(s.left)
}

func (s *stall) stop() {
	s.timer.Stop()
	s.left -= time.Since(s.since)
}

// renew makes all of the limit left.
func (s *stall) renew() {
	s.left = s.limit
	s.came.Store(0)
}

// got notes bytes that came.
func (s *stall) got(n int) {
	if s.came.Add(int64(n)) >= progressBytes {
		s.renew()
	}
}

// end releases the request.
func (s *stall) end() {
	s.stop()
	s.cancel(context.Canceled)
}

// explain returns the reason why the request was cancelled, if it was.
func (s *stall) explain(err error) error {
	if cause := context.Cause(s.ctx); cause != nil && err != nil && !errors.Is(err, io.EOF) {
		return cause
	}
	return err
}

// unknownLength is the length of a body that ends where the answer ends.
const unknownLength = -1

// body is the body of an answer, of exactly the length left that the answer must have: less is io.ErrUnexpectedEOF, and more is an
// error before the last bytes are given out.
type body struct {
	io.ReadCloser
	stall   *stall
	left    int64
	pace    *rate.Limiter // nil if somebody waits
	host    *host
	release func() // of the slot; may be called more than once
	failed  bool
}

func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if b.left == unknownLength {
		return b.readOnce(p)
	}
	p = p[:min(int64(len(p)), b.left)]
	if b.pace != nil {
		p = p[:min(len(p), pieceBytes)]
	}
	n, err := b.readOnce(p)
	if b.pace != nil {
		if err := b.wait(n); err != nil {
			b.failed = true
			return 0, err
		}
	}
	if int64(n) == b.left {
		if err = b.expectEnd(err); err != nil {
			b.failed = true
			return 0, err
		}
		b.left = 0
		return n, nil
	}
	b.left -= int64(n)
	if err != nil {
		b.failed = true
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
	}
	return n, err
}

// wait lets n bytes pass at the pace. Unlike the limiter's own wait it does not fail before a deadline has come.
func (b *body) wait(n int) error {
	timer := time.NewTimer(b.pace.ReserveN(time.Now(), n).Delay())
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-b.stall.ctx.Done():
		return context.Cause(b.stall.ctx)
	}
}

func (b *body) readOnce(p []byte) (int, error) {
	b.stall.start()
	n, err := b.ReadCloser.Read(p)
	b.stall.stop()
	b.stall.got(n)
	b.host.bytes.Add(int64(n))
	return n, b.stall.explain(err)
}

// expectEnd makes sure that nothing follows. err is that of the read which gave the last byte.
func (b *body) expectEnd(err error) error {
	var surplus [1]byte
	for err == nil {
		var n int
		if n, err = b.readOnce(surplus[:]); n > 0 {
			return fmt.Errorf("%w: longer than it should be", errLength)
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// Close gives the connection back if all was read, and closes it otherwise.
func (b *body) Close() error {
	if b.left > 0 || b.failed {
		// Before Close, which would read on to save the connection.
		b.stall.cancel(context.Canceled)
	}
	err := b.ReadCloser.Close()
	b.stall.end()
	b.release()
	return err
}
