package tarstream

import (
	"fmt"
	"io"
)

const (
	// bufferBytes is the size of the read buffer: 256 headers per read of a layer of tiny files.
	bufferBytes = 128 << 10
	// directBytes is the smallest read that goes past the buffer straight into the caller's memory. Below it one more copy costs less
	// than one more read of the stream.
	directBytes = 32 << 10
	// maxEmptyReads is how often in a row the stream may return nothing without an error.
	maxEmptyReads = 100
)

// source is the stream with a buffer and a position.
type source struct {
	r      io.Reader
	buf    []byte
	lo, hi int   // buf[lo:hi] is read but not consumed
	off    int64 // position of buf[lo] in the stream
	err    error // what r said; it holds once the buffer is empty
}

// fill reads once into the free end of the buffer. It returns an error only if it could read nothing.
func (s *source) fill() error {
	if s.lo == s.hi {
		s.lo, s.hi = 0, 0
	} else if s.hi == len(s.buf) {
		s.hi = copy(s.buf, s.buf[s.lo:s.hi])
		s.lo = 0
	}
	n, err := s.readStream(s.buf[s.hi:])
	s.hi += n
	return err
}

// readStream reads at least one byte or returns an error.
func (s *source) readStream(p []byte) (int, error) {
	for range maxEmptyReads {
		if s.err != nil {
			return 0, s.err
		}
		n, err := s.r.Read(p)
		if n < 0 || n > len(p) {
			return 0, fmt.Errorf("read tar stream: reader returned %d of %d bytes", n, len(p))
		}
		s.err = err
		if n > 0 {
			return n, nil
		}
	}
	return 0, io.ErrNoProgress
}

// block consumes one block, which is valid until the next call of any method. The error is io.EOF if the stream ends before the
// block and io.ErrUnexpectedEOF if it ends inside.
func (s *source) block() ([]byte, error) {
	for s.hi-s.lo < blockBytes {
		if err := s.fill(); err != nil {
			if err == io.EOF && s.hi > s.lo {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	b := s.buf[s.lo : s.lo+blockBytes]
	s.consume(blockBytes)
	return b, nil
}

func (s *source) consume(n int) {
	s.lo += n
	s.off += int64(n)
}

// read reads at least one byte of p, which must not be empty, or returns an error.
func (s *source) read(p []byte) (int, error) {
	if s.lo == s.hi {
		if len(p) >= directBytes {
			n, err := s.readStream(p)
			s.off += int64(n)
			return n, err
		}
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.buf[s.lo:s.hi])
	s.consume(n)
	return n, nil
}

// skip consumes n bytes, or returns io.EOF if the stream ends before.
func (s *source) skip(n int64) error {
	for n > 0 {
		if s.lo == s.hi {
			if err := s.fill(); err != nil {
				return err
			}
		}
		c := int(min(n, int64(s.hi-s.lo)))
		s.consume(c)
		n -= int64(c)
	}
	return nil
}
