package faultproxy

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"time"
)

var errBroken = errors.New("broken by a test")

// breakingReader fails after left bytes, once it has called atEnd.
type breakingReader struct {
	from  io.Reader
	left  int64
	atEnd func()
}

func (r *breakingReader) Read(b []byte) (int, error) {
	if r.left == 0 {
		r.atEnd()
		return 0, errBroken
	}
	n, err := r.from.Read(b[:min(int64(len(b)), r.left)])
	r.left -= int64(n)
	return n, err
}

// tricklingReader reads a few bytes at a time, and ends after the time of a stall.
type tricklingReader struct {
	f     *fault
	from  io.Reader
	until time.Time
}

func (r *tricklingReader) Read(b []byte) (int, error) {
	const pause, step = 50 * time.Millisecond, 16
	if r.until.IsZero() {
		r.until = time.Now().Add(r.f.p.opts.Stall)
	}
	if time.Now().After(r.until) {
		return 0, io.EOF
	}
	r.f.wait(r.f.r, pause)
	return r.from.Read(b[:min(len(b), step)])
}

// flippingReader changes a bit of the byte at a distance.
type flippingReader struct {
	from io.Reader
	left int64
}

func (r *flippingReader) Read(b []byte) (int, error) {
	n, err := r.from.Read(b)
	if r.left >= 0 && r.left < int64(n) {
		b[r.left] ^= 1
	}
	r.left -= int64(n)
	return n, err
}

// zeros is an endless file of zeros.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// gzipReader compresses what it reads.
type gzipReader struct {
	from       io.Reader
	compressor *gzip.Writer
	compressed bytes.Buffer
	ended      bool
}

func newGzipReader(from io.Reader) *gzipReader {
	r := &gzipReader{from: from}
	r.compressor, _ = gzip.NewWriterLevel(&r.compressed, gzip.BestSpeed) // the level is a good one
	return r
}

func (r *gzipReader) Read(b []byte) (int, error) {
	for r.compressed.Len() == 0 && !r.ended {
		_, err := io.CopyN(r.compressor, r.from, 32<<10)
		if errors.Is(err, io.EOF) {
			r.ended = true
			err = r.compressor.Close()
		}
		if err != nil {
			return 0, err
		}
	}
	return r.compressed.Read(b)
}
