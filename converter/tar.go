package converter

import (
	"context"
	"errors"
	"io"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/erofs"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tarstream"
)

// FromTar converts a layer's tar stream. Compression (none, gzip, zstd) is detected by content. The stream is read to its end;
// r must return when ctx ends.
//
// A tar that was cut at a header boundary looks complete to every tar reader, so the caller must compare Result.DiffID or
// Result.Blob with what it expects before it uses the instance.
func FromTar(ctx context.Context, r io.Reader, t Target, l Limits) (Result, error) {
	b := &tarBuild{build: newBuild(t, l)}
	var result Result
	sums, err := stream(ctx, r, b.limits.StreamBytes, func(r io.Reader) error {
		if err := b.entries(r); err != nil {
			return err
		}
		var err error
		result, err = b.finish()
		return err
	})
	if err != nil {
		return Result{}, err
	}
	result.Blob, result.BlobBytes, result.DiffID, result.DiffBytes = sums.Blob, sums.BlobBytes, sums.DiffID, sums.DiffBytes
	return result, nil
}

type tarBuild struct {
	*build
	in *tarstream.Reader
}

// entries reads the archive and what follows it up to the end of the stream.
func (b *tarBuild) entries(r io.Reader) error {
	b.in = tarstream.NewReader(r, tarstream.Limits{FileBytes: b.limits.FileBytes})
	for {
		h, err := b.in.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = b.entry(h)
		}
		if err != nil {
			return located(b.in, err)
		}
	}
}

// located says where in the archive an error happened. Errors of the stream itself speak for themselves.
func located(in *tarstream.Reader, err error) error {
	var s *streamError
	if errors.As(err, &s) {
		return s
	}
	name, offset := in.Current()
	return &EntryError{Name: name, Offset: offset, Err: err}
}

func (b *tarBuild) entry(h *tarstream.Header) error {
	return b.add(h, func(a erofs.Attr) (*node, error) {
		segments := make([]erofs.Segment, len(h.Sparse))
		for i, s := range h.Sparse {
			segments[i] = erofs.Segment(s)
		}
		return b.regular(a, h.Size, segments, h.Sparse == nil, b.in)
	})
}
