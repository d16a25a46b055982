package warm

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Reader reads a stream.
type Reader struct {
	tar   *tar.Reader
	begun bool
	seen  map[string]struct{} // instances
	layer Layer
	last  Extent
	sum   Sum // of what came
	end   *Sum
	err   error
}

// NewReader returns a Reader of a stream.
func NewReader(r io.Reader) *Reader {
	return &Reader{tar: tar.NewReader(r), seen: map[string]struct{}{}}
}

// Next goes to the next extent, or to the beginning of a layer: then begins is true, and x is nothing. It returns io.EOF at the end, ErrFormat for
// what cannot be read, io.ErrUnexpectedEOF for a stream that is cut off, or the error of whoever gives the bytes; and then that again.
func (r *Reader) Next() (x Extent, begins bool, err error) {
	if r.err != nil {
		return Extent{}, false, r.err
	}
	if !r.begun {
		if err := r.begin(); err != nil {
			return Extent{}, false, r.fail(err)
		}
		r.begun = true
	}
	if x, begins, err = r.next(); err != nil {
		return Extent{}, false, r.fail(err)
	}
	return x, begins, nil
}

// Layer is the one that was begun last.
func (r *Reader) Layer() Layer { return r.layer }

// Read fills dst, of as many bytes as the extent has that Next has returned.
func (r *Reader) Read(dst []byte) error {
	if r.err != nil {
		return r.err
	}
	if len(dst) != int(r.last.Length) {
		return fmt.Errorf("buffer of %d bytes for an extent of %d", len(dst), r.last.Length)
	}
	if _, err := io.ReadFull(r.tar, dst); err != nil {
		return r.fail(cutOff(err))
	}
	return nil
}

// Sum is what the end says; known when Next has returned io.EOF.
func (r *Reader) Sum() Sum {
	if r.end == nil {
		return Sum{}
	}
	return *r.end
}

// fail notes that nothing can be read any more.
func (r *Reader) fail(err error) error {
	if errors.Is(err, tar.ErrHeader) {
		err = fmt.Errorf("%w: %w", ErrFormat, err)
	}
	r.err = err
	return err
}

// cutOff is the error of an end that comes too early.
func cutOff(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (r *Reader) begin() error {
	h, err := r.entry()
	if err == io.ErrUnexpectedEOF {
		return fmt.Errorf("%w: it ends before it begins: %w", ErrFormat, err)
	}
	if err != nil {
		return err
	}
	if h.Name != beginName {
		return fmt.Errorf("%w: it begins with %.100q", ErrFormat, h.Name)
	}
	var b beginning
	if err := r.document(h, &b); err != nil {
		return err
	}
	if b.Format != Format {
		return fmt.Errorf("%w: it has format %d, this program knows %d only", ErrFormat, b.Format, Format)
	}
	return nil
}

func (r *Reader) next() (x Extent, begins bool, err error) {
	h, err := r.entry()
	if err != nil {
		return Extent{}, false, err
	}
	if h.Name == endName {
		return Extent{}, false, r.ended(h)
	}
	instance, name, ok := strings.Cut(h.Name, "/")
	switch {
	case ok && name == layerName:
		return Extent{}, true, r.begins(instance, h)
	case !ok || instance == "" || instance != r.layer.Instance || !isHex(name, offsetDigits):
		return Extent{}, false, fmt.Errorf("%w: entry %.100q is not expected there", ErrFormat, h.Name)
	}
	offset, err := strconv.ParseInt(name, 16, 64)
	if err != nil || h.Size > 1<<32-1 {
		return Extent{}, false, fmt.Errorf("%w: entry %.100q of %d bytes", ErrFormat, h.Name, h.Size)
	}
	x = Extent{offset, uint32(h.Size)}
	if err := x.check(r.last); err != nil {
		return Extent{}, false, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	r.last = x
	r.sum.add(x)
	return x, false, nil
}

func (r *Reader) begins(instance string, h *tar.Header) error {
	var d description
	if err := r.document(h, &d); err != nil {
		return err
	}
	l := Layer{instance, d.Digest}
	if err := l.check(); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if _, again := r.seen[instance]; again || len(r.seen) >= maxLayers {
		return fmt.Errorf("%w: instance %s comes again, or after %d others", ErrFormat, instance, maxLayers)
	}
	r.seen[instance] = struct{}{}
	r.layer, r.last = l, Extent{}
	return nil
}

// ended reads the end.
func (r *Reader) ended(h *tar.Header) error {
	var end Sum
	if err := r.document(h, &end); err != nil {
		return err
	}
	if end.Extents != r.sum.Extents || end.Bytes != r.sum.Bytes || end.Damaged < 0 {
		return fmt.Errorf("%w: %d extents with %d bytes came, it had %d with %d", ErrFormat, r.sum.Extents, r.sum.Bytes, end.Extents, end.Bytes)
	}
	r.end = &end
	return io.EOF
}

// entry goes to the next one, which is a file as a Writer makes it: no other kind, whose length could be another than that of its bytes.
func (r *Reader) entry() (*tar.Header, error) {
	h, err := r.tar.Next()
	if err != nil {
		return nil, cutOff(err)
	}
	if h.Typeflag != tar.TypeReg || h.Format != tar.FormatUSTAR {
		return nil, fmt.Errorf("%w: entry %.100q is no plain file", ErrFormat, h.Name)
	}
	return h, nil
}

func (r *Reader) document(h *tar.Header, v any) error {
	if h.Size > maxDocumentBytes {
		return fmt.Errorf("%w: entry %.100q has %d bytes, more than %d", ErrFormat, h.Name, h.Size, maxDocumentBytes)
	}
	b := make([]byte, h.Size)
	if _, err := io.ReadFull(r.tar, b); err != nil {
		return cutOff(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: entry %.100q: %w", ErrFormat, h.Name, err)
	}
	return nil
}
