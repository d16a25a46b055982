package cachefiles

import "context"

const (
	// chunkBytes is how much is copied at a time. A READ is for a readahead window, which is rarely longer.
	chunkBytes = 256 << 10
	// chunks are copied at the same time, 4 MiB in all. Copying waits for disks only, and not for long.
	chunks = 16
)

// buffers are memory that direct I/O is possible from, made when it is needed first.
type buffers chan []byte

func newBuffers() buffers {
	b := make(buffers, chunks)
	for range chunks {
		b <- nil
	}
	return b
}

func (b buffers) get(ctx context.Context) ([]byte, error) {
	select {
	case p := <-b:
		if p == nil {
			p = aligned(chunkBytes)
		}
		return p, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (b buffers) put(p []byte) { b <- p }
