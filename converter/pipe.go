package converter

import (
	"context"
	"hash"
	"io"
)

// pipe carries a stream from the goroutine that writes it through one that hashes it to one that reads it. The pieces it is cut
// into are handed on, not copied, and their memory goes back to the writer:
//
//	writer ─ written ─► digest ─ hashed ─► reader
//	  ▲                                      │
//	  └──────────────── free ────────────────┘
//
// There are as many places in each channel as there are pieces, so only the wait for a free piece and that for the next one
// can block, and the slowest of the three sets the pace.
type pipe struct {
	free, written, hashed chan piece
	err                   error // why the writer ended early; set before written is closed
}

// piece is a part of a stream, memory[from:to]. What is before it in memory belongs to the writer.
type piece struct {
	memory   []byte
	from, to int
}

func newPipe(pieces, bytes int) *pipe {
	p := &pipe{free: make(chan piece, pieces), written: make(chan piece, pieces), hashed: make(chan piece, pieces)}
	for range pieces {
		p.free <- piece{memory: make([]byte, bytes)}
	}
	return p
}

// next waits for a free piece, or for the end of ctx.
func (p *pipe) next(ctx context.Context) (piece, error) {
	select {
	case next := <-p.free:
		return next, nil
	case <-ctx.Done():
		return piece{}, context.Cause(ctx)
	}
}

// put hands a piece of the stream on.
func (p *pipe) put(next piece) { p.written <- next }

// close ends the stream: with err, or well if that is nil.
func (p *pipe) close(err error) {
	p.err = err
	close(p.written)
}

// digest is the body of the middle goroutine.
func (p *pipe) digest(h hash.Hash) {
	defer close(p.hashed)
	for next := range p.written {
		h.Write(next.memory[next.from:next.to])
		p.hashed <- next
	}
}

// pipeReader is the reader's end. The reader may stop at any time if the writer's context ends then.
type pipeReader struct {
	p    *pipe
	last piece // what is left of it is from:to
	n    int64 // bytes of the stream up to the end of last
}

// Lend returns the next bytes of the stream, which are valid until the next call of any method.
func (r *pipeReader) Lend() ([]byte, error) {
	for r.last.from == r.last.to {
		if r.last.memory != nil {
			r.p.free <- r.last
		}
		var ok bool
		if r.last, ok = <-r.p.hashed; !ok {
			if r.p.err != nil {
				return nil, r.p.err
			}
			return nil, io.EOF
		}
		r.n += int64(r.last.to - r.last.from)
	}
	b := r.last.memory[r.last.from:r.last.to]
	r.last.from = r.last.to
	return b, nil
}

// Read implements io.Reader.
func (r *pipeReader) Read(b []byte) (int, error) {
	lent, err := r.Lend()
	n := copy(b, lent)
	r.last.from -= len(lent) - n
	return n, err
}
