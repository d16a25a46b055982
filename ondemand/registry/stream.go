package registry

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
)

// Open returns a reader of the whole blob, from first to last byte. The bytes of the first range can be read as they come, while others
// are fetched. ctx bounds the reading too; when it ends or the reader is closed, all that was under way ends with it. The result
// also has a method Source() string that names the hosts and the repository.
func (c *Client) Open(ctx context.Context, image string, desc ocispec.Descriptor) (io.ReadCloser, error) {
	ctx, o, err := c.object(ctx, image, desc, blobs)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	ctx, traced := otel.Tracer("ondemand/registry").Start(ctx, "fetch", trace.WithAttributes(
		attribute.String("blob", desc.Digest.String()), attribute.Int64("bytes", desc.Size)))
	account := c.memory.open()
	s := &stream{
		client: c, object: o, ctx: ctx, cancel: cancel, trace: traced,
		account: account, queue: newQueue(account), done: make(chan struct{}),
	}
	go s.run()
	// A reader that nobody closes after ctx has ended holds no memory either.
	s.unwatch = context.AfterFunc(ctx, func() { s.finish(cancelled(ctx, o.name, o.hosts())) })
	return s, nil
}

// stream reads a whole blob. It has a goroutine of its own, and one for each range in the making.
type stream struct {
	client  *Client
	object  *object
	ctx     context.Context
	cancel  context.CancelCauseFunc
	unwatch func() bool
	trace   trace.Span
	account *account
	queue   *queue
	done    chan struct{} // closed when nothing writes to the queue any more
	once    sync.Once     // of what is released at the end
	served  sync.Map      // of names of hosts that sent bytes
}

// Read is io.Reader.
func (s *stream) Read(p []byte) (int, error) { return s.queue.Read(p) }

// Source names the hosts that serve the blob and its repository.
func (s *stream) Source() string { return s.object.hosts() + "/" + s.object.repository.name }

// Close ends all that is under way and waits for it.
func (s *stream) Close() error {
	s.unwatch()
	s.cancel(os.ErrClosed)
	s.finish(os.ErrClosed)
	return nil
}

// finish releases what the stream holds, once nothing uses it any more.
func (s *stream) finish(err error) {
	<-s.done
	s.queue.end(err)
	s.once.Do(s.account.close)
}

// run fetches the blob into the queue.
func (s *stream) run() {
	err := s.fetch()
	if err != nil {
		s.trace.RecordError(err)
		s.trace.SetStatus(codes.Error, err.Error())
	} else {
		err = io.EOF
	}
	var served []string
	s.served.Range(func(host, _ any) bool { served = append(served, host.(string)); return true })
	s.trace.SetAttributes(attribute.StringSlice("host", served))
	s.trace.End()
	s.queue.end(err)
	close(s.done)
}

// fetch asks for the first range alone, so that tokens, redirects and what the host can do are known before there are many requests.
func (s *stream) fetch() error {
	size := s.object.size
	if size == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	head, err := s.next(ctx, 0)
	if err != nil {
		return err
	}
	first := s.section(ctx, 0, int64(len(head.buf)))
	defer first.Close()
	if err := first.open(); err != nil {
		return err
	}
	if first.current.end == size {
		return s.sequential(first, head)
	}
	if err := s.parallel(ctx, cancel, first, head); !errors.Is(err, errNoRanges) {
		return err
	}
	rest := s.section(s.ctx, s.queue.cut(), size)
	defer rest.Close()
	return s.sequential(rest, nil)
}

// sequential fills the queue from one section, to the end of the blob. It holds a connection while the reader pauses, which therefore
// does not count for what others may have.
func (s *stream) sequential(from *section, into *span) error {
	from.end, from.whole = s.object.size, true
	for {
		if into != nil {
			if err := s.fill(into, from); err != nil {
				return err
			}
		}
		if from.off == from.end {
			return nil
		}
		from.yieldSlot()
		var err error
		if into, err = s.next(s.ctx, from.off); err != nil {
			return err
		}
	}
}

// parallel fills the queue with several ranges at a time. Each has its memory before it is asked for, so none waits for a reader with a
// connection in its hands.
func (s *stream) parallel(ctx context.Context, cancel func(), first *section, head *span) error {
	group, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, cancel)() // first has the outer context
	group.SetLimit(s.client.options.Connections)
	group.Go(func() error { return s.fill(head, first) })
	for off := int64(len(head.buf)); off < s.object.size; {
		into, err := s.next(ctx, off)
		if err != nil {
			break // the context has ended
		}
		part := s.section(ctx, off, off+int64(len(into.buf)))
		group.Go(func() error {
			defer part.Close()
			return s.fill(into, part)
		})
		off = part.end
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return cancelled(s.ctx, s.object.name, s.object.hosts())
}

// next puts room for the range that begins at off into the queue, when there is memory.
func (s *stream) next(ctx context.Context, off int64) (*span, error) {
	buf, err := s.account.get(ctx, min(rangeBytes, s.object.size-off))
	if err != nil {
		return nil, &Error{Host: s.object.hosts(), Object: s.object.name, Err: err}
	}
	return s.queue.append(buf), nil
}

func (s *stream) fill(into *span, from *section) error {
	if err := s.queue.fill(into, from); err != nil {
		return err
	}
	s.served.Store(from.from.host.name, nil)
	return nil
}

func (s *stream) section(ctx context.Context, off, end int64) *section {
	return s.client.section(ctx, s.object, off, end)
}
