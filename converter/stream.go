package converter

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"runtime/debug"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/inflate"
)

// sums are digests and lengths of one stream.
type sums struct {
	blob, diffID         digest.Digest
	blobBytes, diffBytes int64
}

// streamError is an error of the stream as a whole: the source failed, or the compression is corrupt.
type streamError struct {
	offset int64 // how much of the stream as it was given had been read
	err    error
}

func (e *streamError) Error() string {
	return fmt.Sprintf("layer stream, about %d bytes in: %v", e.offset, e.err)
}
func (e *streamError) Unwrap() error { return e.err }

const (
	// pieceBytes is what the stages of the pipeline hand on at a time.
	pieceBytes = 512 << 10
	// pieces is how many of them there are: decompression, hashing and conversion each work on one, the others wait between
	// them. 3 MiB together.
	pieces = 6
)

// piece is a part of the decompressed stream, with as much in front of it as decompression refers back to.
type piece struct {
	memory   []byte
	from, to int
}

// stream runs the pipeline
//
//	source ─► hash (blob) ─► decompress ─► hash (diffID) ─► consume
//
// with a goroutine for each half before consume, which runs in the caller's. All have ended when it returns. After consume
// the rest of the stream is read as well: trailing padding counts for the digests.
func stream(ctx context.Context, r io.Reader, limit int64, consume func(io.Reader) error) (sums, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &pipeline{ctx: ctx, free: make(chan piece, pieces), decoded: make(chan piece, pieces), hashed: make(chan piece, pieces)}
	for range pieces {
		p.free <- piece{memory: make([]byte, inflate.WindowBytes+pieceBytes)}
	}
	blob := &countedHash{in: r, hash: sha256.New()}
	diff := sha256.New()
	var wg sync.WaitGroup
	wg.Go(func() { p.decode(blob, limit) })
	wg.Go(func() { p.digest(diff) })
	out := &pieceReader{p: p}
	err := func() (err error) {
		defer contain(&err)
		return consume(out)
	}()
	if err == nil {
		_, err = io.Copy(io.Discard, out)
	}
	cancel()
	wg.Wait()
	if err != nil {
		return sums{}, err
	}
	return sums{
		blob: digest.NewDigest(digest.SHA256, blob.hash), blobBytes: blob.n,
		diffID: digest.NewDigest(digest.SHA256, diff), diffBytes: out.n,
	}, nil
}

// pipeline carries pieces of the decompressed stream from stage to stage.
type pipeline struct {
	ctx                   context.Context
	free, decoded, hashed chan piece
	err                   error // why decode ended; written before decoded is closed
}

// decode is the first stage.
func (p *pipeline) decode(blob *countedHash, limit int64) {
	defer close(p.decoded)
	defer contain(&p.err)
	p.err = p.decodeAll(blob, limit)
}

// contain turns a panic into an error. Layers come from strangers: a mistake of ours that one of them finds must cost that pull,
// not all others of the node.
func contain(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("internal error, please report it: %v\n%s", r, debug.Stack())
	}
}

func (p *pipeline) decodeAll(blob *countedHash, limit int64) error {
	in := bufio.NewReaderSize(blob, 64<<10)
	d, err := decompressor(in)
	if err != nil {
		return &streamError{blob.n, err}
	}
	defer d.Close()
	var total int64
	for last := (piece{}); ; {
		var next piece
		select {
		case next = <-p.free:
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		}
		next.from = copy(next.memory, last.memory[max(last.from, last.to-inflate.WindowBytes):last.to])
		next.to, err = d.Fill(next.memory, next.from)
		if total += int64(next.to - next.from); total > limit {
			return &streamError{blob.n, fmt.Errorf("%w: more than %d bytes when decompressed", ErrLimit, limit)}
		}
		if next.to > next.from {
			p.decoded <- next // never blocks: there are no more pieces than places
			last = next
		}
		if err == io.EOF {
			// A zstd decoder may stop before the end of its input.
			if _, err = io.Copy(io.Discard, in); err == nil {
				return nil
			}
		}
		if ended := context.Cause(p.ctx); ended != nil {
			return ended
		}
		if err != nil {
			return &streamError{blob.n, err}
		}
	}
}

// digest is the second stage.
func (p *pipeline) digest(h hash.Hash) {
	defer close(p.hashed)
	for next := range p.decoded {
		h.Write(next.memory[next.from:next.to])
		p.hashed <- next // never blocks
	}
}

// pieceReader is what the last stage reads.
type pieceReader struct {
	p    *pipeline
	last piece // what is left of it is from:to
	n    int64
}

func (r *pieceReader) Read(b []byte) (int, error) {
	for r.last.from == r.last.to {
		if r.last.memory != nil {
			r.p.free <- r.last // never blocks
		}
		var ok bool
		if r.last, ok = <-r.p.hashed; !ok {
			if r.p.err != nil {
				return 0, r.p.err
			}
			return 0, io.EOF
		}
	}
	n := copy(b, r.last.memory[r.last.from:r.last.to])
	r.last.from += n
	r.n += int64(n)
	return n, nil
}

// countedHash hashes and counts what is read from in.
type countedHash struct {
	in   io.Reader
	hash hash.Hash
	n    int64
}

func (c *countedHash) Read(b []byte) (int, error) {
	n, err := c.in.Read(b)
	c.hash.Write(b[:n])
	c.n += int64(n)
	return n, err
}
