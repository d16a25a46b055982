package converter

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
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
	pieceBytes = 256 << 10
	// pieces is how many of them there are: decompression, hashing and conversion each work on one, the others wait between
	// them. 2 MiB together.
	pieces = 8
	// zstdWindow bounds what a zstd frame may ask for. 128 MiB is what zstd(1) decodes without being told to.
	zstdWindow = 128 << 20
)

// stream runs the pipeline
//
//	source ─► hash (blob) ─► decompress ─► hash (diffID) ─► consume
//
// with a goroutine for each half before consume, which runs in the caller's. All have ended when it returns. After consume
// the rest of the stream is read as well: trailing padding counts for the digests.
func stream(ctx context.Context, r io.Reader, limit int64, consume func(io.Reader) error) (sums, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &pipeline{ctx: ctx, free: make(chan []byte, pieces), decoded: make(chan []byte, pieces), hashed: make(chan []byte, pieces)}
	for range pieces {
		p.free <- make([]byte, pieceBytes)
	}
	blob := &countedHash{in: r, hash: sha256.New()}
	diff := sha256.New()
	var wg sync.WaitGroup
	wg.Go(func() { p.decode(blob, limit) })
	wg.Go(func() { p.digest(diff) })
	out := &pieceReader{p: p}
	err := consume(out)
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
	free, decoded, hashed chan []byte
	err                   error // why decode ended; written before decoded is closed
}

// decode is the first stage.
func (p *pipeline) decode(blob *countedHash, limit int64) {
	defer close(p.decoded)
	p.err = p.decodeAll(blob, limit)
}

func (p *pipeline) decodeAll(blob *countedHash, limit int64) error {
	in := bufio.NewReaderSize(blob, pieceBytes)
	d, err := decompressor(in)
	if err != nil {
		return &streamError{blob.n, err}
	}
	defer d.Close()
	for total := int64(0); ; {
		var b []byte
		select {
		case b = <-p.free:
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		}
		n, err := fill(d, b)
		if total += int64(n); total > limit {
			return &streamError{blob.n, fmt.Errorf("%w: more than %d bytes when decompressed", ErrLimit, limit)}
		}
		if n > 0 {
			p.decoded <- b[:n] // never blocks: there are no more pieces than places
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

// fill reads until b is full or r ends. Unlike io.ReadFull it returns the reader's own error, so that io.ErrUnexpectedEOF
// always means a truncated stream.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err
}

// digest is the second stage.
func (p *pipeline) digest(h hash.Hash) {
	defer close(p.hashed)
	for b := range p.decoded {
		h.Write(b)
		p.hashed <- b // never blocks
	}
}

// pieceReader is what the last stage reads.
type pieceReader struct {
	p    *pipeline
	b    []byte // what is left of the current piece
	full []byte // the current piece
	n    int64
}

func (r *pieceReader) Read(b []byte) (int, error) {
	for len(r.b) == 0 {
		if r.full != nil {
			r.p.free <- r.full[:pieceBytes] // never blocks
			r.full = nil
		}
		piece, ok := <-r.p.hashed
		if !ok {
			if r.p.err != nil {
				return 0, r.p.err
			}
			return 0, io.EOF
		}
		r.b, r.full = piece, piece
	}
	n := copy(b, r.b)
	r.b = r.b[n:]
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

// decompressor looks at the first bytes of in. RFC 1952 2.3.1 for gzip, RFC 8878 3.1 for zstd with its skippable frames.
func decompressor(in *bufio.Reader) (io.ReadCloser, error) {
	head, err := in.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", unexpectedEOF(err))
		}
		return z, nil
	case len(head) == 4 && (string(head) == "\x28\xb5\x2f\xfd" || head[0]&0xf0 == 0x50 && string(head[1:]) == "\x2a\x4d\x18"):
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(in), nil
}

func unexpectedEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
