package tarstream

import (
	"fmt"
	"io"
)

const (
	// bufferBytes is the size of the read buffer for a stream that does not lend: 256 headers per read of a layer of tiny files.
	bufferBytes = 128 << 10
	// maxEmptyReads is how often in a row the stream may return nothing without an error.
	maxEmptyReads = 100
)

// Lender is a stream that hands out its own memory. A Reader whose stream is one copies no byte before its caller asks for it.
type Lender interface {
	// Lend returns the next bytes of the stream, valid until the next call, or an error and no bytes.
	Lend() ([]byte, error)
}

// source is the stream with a position.
type source struct {
	from  Lender
	lent  []byte // not consumed yet
	off   int64  // position of lent[0] in the stream
	cross block  // a block that two loans share
}

func newSource(r io.Reader) source {
	if l, ok := r.(Lender); ok {
		return source{from: l}
	}
	return source{from: &buffered{r: r, buf: make([]byte, bufferBytes)}}
}

// borrow makes sure that something is lent, or returns an error.
func (s *source) borrow() error {
	for range maxEmptyReads {
		if len(s.lent) > 0 {
			return nil
		}
		b, err := s.from.Lend()
		if err != nil {
			return err
		}
		s.lent = b
	}
	return io.ErrNoProgress
}

// block consumes one block, which is valid until the next call of any method. The error is io.EOF if the stream ends before the
// block and io.ErrUnexpectedEOF if it ends inside.
func (s *source) block() ([]byte, error) {
	if err := s.borrow(); err != nil {
		return nil, err
	}
	if len(s.lent) >= blockBytes {
		b := s.lent[:blockBytes]
		s.consume(blockBytes)
		return b, nil
	}
	for n := 0; n < blockBytes; {
		m, err := s.read(s.cross[n:])
		n += m
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
	}
	return s.cross[:], nil
}

func (s *source) consume(n int) {
	s.lent = s.lent[n:]
	s.off += int64(n)
}

// read reads at least one byte of p, which must not be empty, or returns an error.
func (s *source) read(p []byte) (int, error) {
	if err := s.borrow(); err != nil {
		return 0, err
	}
	n := copy(p, s.lent)
	s.consume(n)
	return n, nil
}

// skip consumes n bytes, or returns io.EOF if the stream ends before.
func (s *source) skip(n int64) error {
	for n > 0 {
		if err := s.borrow(); err != nil {
			return err
		}
		c := int(min(n, int64(len(s.lent))))
		s.consume(c)
		n -= int64(c)
	}
	return nil
}

// buffered is a Lender of what it reads into its buffer.
type buffered struct {
	r   io.Reader
	buf []byte
	err error // what r said with its last bytes
}

func (b *buffered) Lend() ([]byte, error) {
	if b.err != nil {
		return nil, b.err
	}
	n, err := b.r.Read(b.buf)
	if n < 0 || n > len(b.buf) {
		return nil, fmt.Errorf("read tar stream: reader returned %d of %d bytes", n, len(b.buf))
	}
	b.err = err
	if n == 0 {
		return nil, err
	}
	return b.buf[:n], nil
}
