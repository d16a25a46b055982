package converter

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"runtime/debug"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/inflate"
)

// Sums are digests and lengths of one stream: as it was given, usually compressed, and of the tar in it, trailing padding included.
type Sums struct {
	Blob      digest.Digest
	BlobBytes int64
	DiffID    digest.Digest
	DiffBytes int64
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

// The memory of the two pipes: 4.2 MiB together. With fewer or smaller pieces the stages wait for each other, with larger ones
// each byte has left the processor's cache before the next stage gets to it.
const (
	blobPieces, blobPieceBytes = 4, 256 << 10
	tarPieces, tarPieceBytes   = 6, inflate.WindowBytes + 512<<10
)

// stream runs the pipeline
//
//	source ─► read ─► hash (blob) ─► decompress ─► hash (diffID) ─► consume
//
// with a goroutine for each stage before consume, which runs in the caller's. All have ended when it returns. A stream that is not
// compressed is read straight into the second half, and hashed once. After consume the rest of the stream is read as well:
// trailing padding counts for the digests.
func stream(ctx context.Context, r io.Reader, limit int64, consume func(io.Reader) error) (_ Sums, err error) {
	defer contain(&err)
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()

	source := &countedReader{in: r}
	in := bufio.NewReaderSize(source, 64<<10)
	kind, err := detect(in)
	if err != nil {
		return Sums{}, &streamError{source.n, err}
	}
	blob, diff := sha256.New(), sha256.New()
	compressed := &countedReader{in: in}
	if kind != asTar {
		p := newPipe(blobPieces, blobPieceBytes)
		running.Go(func() { p.close(readAll(ctx, in, p)) })
		running.Go(func() { p.digest(blob) })
		compressed.in = &pipeReader{p: p}
	} else {
		blob = diff
	}
	tar := newPipe(tarPieces, tarPieceBytes)
	running.Go(func() { tar.close(decompress(ctx, kind, compressed, tar, limit)) })
	running.Go(func() { tar.digest(diff) })

	out := &pipeReader{p: tar}
	if err := consume(out); err != nil {
		return Sums{}, err
	}
	if _, err := io.Copy(io.Discard, out); err != nil {
		return Sums{}, err
	}
	return Sums{
		Blob: digest.NewDigest(digest.SHA256, blob), BlobBytes: compressed.n,
		DiffID: digest.NewDigest(digest.SHA256, diff), DiffBytes: out.n,
	}, nil
}

// contain turns a panic into an error. Layers come from strangers: a mistake of ours that one of them finds must cost that pull,
// not all others of the node.
func contain(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("internal error, please report it: %v\n%s", r, debug.Stack())
	}
}

// readAll is the first stage.
func readAll(ctx context.Context, in io.Reader, p *pipe) (err error) {
	defer contain(&err)
	for {
		next, err := p.next(ctx)
		if err != nil {
			return err
		}
		next.from = 0
		next.to, err = readFull(in, next.memory)
		if next.to > 0 {
			p.put(next)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// readFull reads like io.ReadFull, but returns the reader's own error, so that io.ErrUnexpectedEOF always means a truncated stream.
func readFull(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	if n == len(b) {
		err = nil
	}
	return n, err
}

// decompress is the stage in the middle. It reads the compressed stream to its end.
func decompress(ctx context.Context, kind compression, in *countedReader, p *pipe, limit int64) (err error) {
	defer contain(&err)
	d, err := newDecoder(kind, in)
	if err != nil {
		return &streamError{in.n, err}
	}
	defer d.Close()
	var total int64
	for last := (piece{}); ; {
		next, err := p.next(ctx)
		if err != nil {
			return err
		}
		next.from = copy(next.memory, last.memory[max(last.from, last.to-inflate.WindowBytes):last.to])
		next.to, err = d.Fill(next.memory, next.from)
		if total += int64(next.to - next.from); total > limit {
			return &streamError{in.n, fmt.Errorf("%w: more than %d bytes when decompressed", ErrLimit, limit)}
		}
		if next.to > next.from {
			p.put(next)
			last = next
		}
		if err == io.EOF {
			// A zstd decoder may stop before the end of its input.
			if _, err = io.Copy(io.Discard, in); err == nil {
				return nil
			}
		}
		if ended := context.Cause(ctx); ended != nil {
			return ended
		}
		if err != nil {
			return &streamError{in.n, err}
		}
	}
}

// countedReader counts what is read from in.
type countedReader struct {
	in io.Reader
	n  int64
}

func (c *countedReader) Read(b []byte) (int, error) {
	n, err := c.in.Read(b)
	c.n += int64(n)
	return n, err
}
