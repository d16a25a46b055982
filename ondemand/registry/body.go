package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/time/rate"
)

// pieceBytes is how much paced work reads at a time. A slow link carries it within the stall timeout.
const pieceBytes = 64 << 10

var errStalled = errors.New("no byte within the stall timeout")

// stall cancels a request that makes no progress. It runs while we wait for the host, not while the host waits for us.
type stall struct {
	ctx    context.Context // of the request
	cancel context.CancelCauseFunc
	limit  time.Duration
	timer  *time.Timer
}

// newStall returns a running stall.
func newStall(ctx context.Context, limit time.Duration) *stall {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &stall{ctx: ctx, cancel: cancel, limit: limit}
	s.timer = time.AfterFunc(limit, func() { cancel(fmt.Errorf("%w of %v", errStalled, limit)) })
	return s
}

func (s *stall) start() { s.timer.Reset(s.limit) }
func (s *stall) stop()  { s.timer.Stop() }

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
