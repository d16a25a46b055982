package registry

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ReadAt fills p with the bytes of the blob from off on, or returns an error.
func (c *Client) ReadAt(ctx context.Context, image string, desc ocispec.Descriptor, p []byte, off int64) error {
	return c.ReadInto(ctx, image, desc, p, off, func(int) {})
}

// ReadInto is ReadAt, which calls came with how many bytes of p are there whenever there are more. They do not change any more, also if there
// is an error in the end.
func (c *Client) ReadInto(ctx context.Context, image string, desc ocispec.Descriptor, p []byte, off int64, came func(n int)) error {
	ctx, o, err := c.object(ctx, image, desc, blobs)
	if err != nil {
		return err
	}
	if off < 0 || off > desc.Size || int64(len(p)) > desc.Size-off {
		return &Error{Object: o.name, Err: fmt.Errorf("%w: bytes %d+%d of %d", errdefs.ErrOutOfRange, off, len(p), desc.Size)}
	}
	s := c.section(ctx, o, off, off+int64(len(p)))
	defer s.Close()
	return s.fill(p, came)
}

// section reads bytes [off, end) of a blob, whatever happens to the hosts. It belongs to one goroutine, and does not outlive ctx.
type section struct {
	client   *Client
	ctx      context.Context
	object   *object
	attempts *attempts
	off, end int64
	whole    bool // hosts without ranges will do, read from their beginning
	current  *piece
	from     *endpoint // of current
}

func (c *Client) section(ctx context.Context, o *object, off, end int64) *section {
	return &section{client: c, ctx: ctx, object: o, attempts: c.attempts(ctx, o), off: off, end: end}
}

// open makes a host send, unless one does already.
func (s *section) open() error {
	for s.current == nil {
		ep, err := s.attempts.next(s.ctx)
		if err != nil {
			return err
		}
		p, f := s.client.openRange(s.ctx, ep, s.object, s.off, s.end, s.whole)
		if f != nil {
			s.attempts.note(s.ctx, ep, f)
			continue
		}
		s.current, s.from = p, ep
	}
	return nil
}

// Read returns the next bytes, and io.EOF after the last. Other errors are final.
func (s *section) Read(p []byte) (int, error) {
	p = p[:min(int64(len(p)), s.end-s.off)]
	for s.off < s.end {
		if err := s.open(); err != nil {
			return 0, err
		}
		n, err := s.current.Read(p)
		s.off += int64(n)
		s.attempts.came(n)
		switch {
		case err != nil && !errors.Is(err, io.EOF):
			s.attempts.note(s.ctx, s.from, bodyFailure(err))
			s.Close()
		case s.off == s.end:
			s.from.host.breaker.worked()
			s.Close()
		case s.off == s.current.end && s.current.length < progressBytes:
			s.attempts.note(s.ctx, s.from, passing(kindRange, "only %d bytes of those asked for", s.current.length))
			s.Close()
		case s.off == s.current.end:
			s.from.host.breaker.worked()
			s.Close()
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, io.EOF
}

// fill reads all of p.
func (s *section) fill(p []byte, came func(n int)) error {
	for n := 0; n < len(p); {
		k, err := s.Read(p[n:])
		if err != nil {
			return err
		}
		n += k
		came(n)
	}
	return nil
}

// yieldSlot makes the request that is under way not count as one of the connections of its host.
func (s *section) yieldSlot() {
	if s.current != nil {
		s.current.release()
	}
}

// Close ends the request that is under way.
func (s *section) Close() error {
	if s.current != nil {
		s.current.Close()
		s.current = nil
	}
	return nil
}
