package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/semaphore"
)

// cheapSkip is how much of an answer 200 is read over to reach the range that was asked for: about what a round trip would carry.
const cheapSkip = 1 << 20

var (
	// errLength says that an answer has another length than it must have.
	errLength = errors.New("wrong length")
	// errNoRanges says that a host sends only whole blobs.
	errNoRanges = errors.New("the host does not send ranges")
)

// piece is an answer with bytes [off, end) of a blob. end may be less than asked for, or more: all of the blob.
type piece struct {
	*body
	length int64 // of what is of use
	end    int64
}

// openRange asks an endpoint for bytes [off, end) of a blob. skip allows to read over the beginning of a whole blob however long.
func (c *Client) openRange(ctx context.Context, ep *endpoint, o *object, off, end int64, skip bool) (*piece, *failure) {
	slots, pace := ep.host.slots, c.background
	if inBackground(ctx) {
		slots = ep.host.backgroundSlots
	} else {
		pace = nil
	}
	release, err := takeSlot(ctx, slots)
	if err != nil {
		return nil, passing(kindStalled, "wait for a connection: %w", err)
	}
	a := c.attempt(ctx, ep, o, http.MethodGet, fmt.Sprintf("bytes=%d-%d", off, end-1))
	resp, f := a.exchange()
	if f != nil {
		a.stall.end()
		release()
		return nil, f
	}
	first, last, f := answeredRange(resp, off, end, o.size)
	if f == nil && off-first > cheapSkip && !skip {
		f = lasting(kindNoRanges, errdefs.ErrFailedPrecondition, "%w", errNoRanges)
	}
	if f != nil {
		resp.Body.Close()
		a.stall.end()
		release()
		return nil, f
	}
	b := &body{ReadCloser: resp.Body, stall: a.stall, left: last - first, pace: pace, host: ep.host, release: release}
	if err := b.skip(off - first); err != nil {
		b.Close()
		return nil, bodyFailure(err)
	}
	return &piece{body: b, length: last - off, end: last}, nil
}

// takeSlot waits for one of the connections of a host. The function gives it back, once.
func takeSlot(ctx context.Context, slots *semaphore.Weighted) (release func(), err error) {
	if err := slots.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { slots.Release(1) }), nil
}

// answeredRange returns which bytes of the blob an answer holds: those asked for or fewer from off on (206), or all (200).
func answeredRange(resp *http.Response, off, end, size int64) (first, last int64, f *failure) {
	switch resp.StatusCode {
	case http.StatusOK:
		last = size
	case http.StatusPartialContent:
		r, err := parseContentRange(resp.Header.Get("Content-Range"))
		if err != nil {
			return 0, 0, lasting(kindRange, errdefs.ErrFailedPrecondition, "%w", err)
		}
		if r.total != size && r.total != unknownTotal {
			return 0, 0, lasting(kindLength, errdefs.ErrFailedPrecondition, "it has %d bytes there, not %d as the manifest says", r.total, size)
		}
		if r.first != off || r.end > end {
			return 0, 0, lasting(kindRange, errdefs.ErrFailedPrecondition, "asked for bytes %d-%d, got %d-%d", off, end-1, r.first, r.end-1)
		}
		first, last = r.first, r.end
	default:
		return 0, 0, statusFailure(resp)
	}
	if f := checkEncoding(resp); f != nil {
		return 0, 0, f
	}
	if n := resp.ContentLength; n >= 0 && n != last-first {
		return 0, 0, lasting(kindLength, errdefs.ErrFailedPrecondition, "%w: %d bytes instead of %d", errLength, n, last-first)
	}
	return first, last, nil
}

// checkEncoding refuses bodies that are not the bytes of the object.
func checkEncoding(resp *http.Response) *failure {
	if e := resp.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return lasting(kindContent, errdefs.ErrFailedPrecondition, "it comes in Content-Encoding %.20q though identity was asked for", e)
	}
	return nil
}

// bodyFailure is what an error in the middle of a body means.
func bodyFailure(err error) *failure {
	if errors.Is(err, errLength) {
		return passing(kindLength, "%w", err)
	}
	return sendFailure(err)
}

// skip reads over n bytes.
func (b *body) skip(n int64) error {
	if n == 0 {
		return nil
	}
	buf := make([]byte, min(n, pieceBytes))
	for n > 0 {
		k, err := b.Read(buf[:min(n, int64(len(buf)))])
		n -= int64(k)
		if err != nil {
			return err
		}
	}
	return nil
}
