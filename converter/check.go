package converter

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tarstream"
)

// ErrMismatch is wrapped by errors about layers that are not what their index says.
var ErrMismatch = errors.New("layer is not what its index says")

// CheckTar reads the whole stream of a layer once and compares its tar with an index, entry by entry and byte by byte. After it, what
// FromIndex made of the index is known to be what the tar says, as far as the format of the index can express that.
//
// Each extent of Lazy.Extents goes to put with its number, in order, after its digest was compared; b is valid during the call. A hole of
// the index must be zeros in the tar. An error of put ends the check and comes back as it is.
//
// The caller compares Sums with the digests that it expects. It does so in spite of ErrMismatch, too, by a digest of its own that goes on to
// the end of r: from the wrong bytes nothing follows about the layer. ErrMismatch also says that the stream holds no tar, or none
// that Limits allow; any other error says nothing about the layer.
func CheckTar(ctx context.Context, r io.Reader, idx *index.Index, l Limits, put func(i int, b []byte) error) (Sums, error) {
	records, err := idx.Records()
	if err != nil {
		return Sums{}, fmt.Errorf("%s: %w", idx.Format, err)
	}
	c := &check{index: idx, records: records, put: put, limits: l.withDefaults()}
	source := &failingReader{in: r}
	sums, err := stream(ctx, source, c.limits.StreamBytes, func(r io.Reader) error { return c.entries(ctx, r) })
	if err == nil {
		return sums, nil
	}
	var entry *EntryError
	var corrupt *streamError
	switch {
	case ctx.Err() != nil, source.err != nil, errors.Is(err, ErrMismatch):
	case errors.As(err, &entry), errors.As(err, &corrupt):
		err = fmt.Errorf("%w: %w", ErrMismatch, err)
	}
	return Sums{}, err
}

// failingReader remembers an error of a reader. It is asked for it after the goroutine that reads has ended.
type failingReader struct {
	in  io.Reader
	err error
}

func (r *failingReader) Read(b []byte) (int, error) {
	n, err := r.in.Read(b)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// check goes along a tar and the records of its index side by side.
type check struct {
	index   *index.Index
	records index.Reader
	put     func(i int, b []byte) error
	limits  Limits

	tar    *tarstream.Reader
	data   tarData // of the current file
	next   int     // number of the next extent that has a place in the data blob
	extent []byte  // memory for one
}

// entries compares all entries of the tar in r. Its errors are EntryErrors unless they are not about the tar.
func (c *check) entries(ctx context.Context, r io.Reader) error {
	c.tar = tarstream.NewReader(r, tarstream.Limits{FileBytes: c.limits.FileBytes})
	for {
		h, err := c.tar.Next()
		if err == io.EOF {
			return c.end()
		}
		if err != nil {
			return located(c.tar, err)
		}
		if err := c.entry(ctx, h); err != nil {
			return err
		}
	}
}

// end expects that no records are left.
func (c *check) end() error {
	record, err := c.records.Next()
	if err == io.EOF {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c.index.Format, err)
	}
	return fmt.Errorf("%w: the index has %s, the tar has not", ErrMismatch, quote(record.Name))
}

func (c *check) entry(ctx context.Context, h *tarstream.Header) error {
	path, err := splitPath(h.Name)
	if err != nil {
		return located(c.tar, err)
	}
	name := strings.Join(path, "/")
	if h.Type == tarstream.Regular && slices.Contains(c.index.Hidden, name) {
		return nil
	}
	record, err := c.records.Next()
	if err == io.EOF {
		return located(c.tar, fmt.Errorf("%w: the index has no more entries", ErrMismatch))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c.index.Format, err)
	}
	if err := compareHeaders(name, h, &record.Header); err != nil {
		return located(c.tar, err)
	}
	if h.Type != tarstream.Regular {
		return nil
	}
	c.data = tarData{in: c.tar, segments: h.Sparse, dense: h.Sparse == nil}
	return c.contents(ctx, record, hasContents(path))
}

// contents compares the extents of a file, and hands them on if the file has a place in the data blob.
func (c *check) contents(ctx context.Context, r *index.Record, placed bool) error {
	for _, x := range r.Extents {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if x.Hole {
			if err := c.data.zeros(x.Length); err != nil {
				return located(c.tar, fmt.Errorf("hole at %d: %w", x.Offset, err))
			}
			continue
		}
		if int64(cap(c.extent)) < x.Length {
			c.extent = make([]byte, x.Length)
		}
		b := c.extent[:x.Length]
		if err := c.data.read(b); err != nil {
			return located(c.tar, fmt.Errorf("extent at %d: %w", x.Offset, err))
		}
		if got := sha256.Sum256(b); got != x.Digest {
			return located(c.tar, fmt.Errorf("%w: extent at %d has digest sha256:%x, in the index sha256:%x", ErrMismatch, x.Offset, got, x.Digest))
		}
		if !placed {
			continue
		}
		if err := c.put(c.next, b); err != nil {
			return err
		}
		c.next++
	}
	return nil
}
