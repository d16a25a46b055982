// Package estargz reads the index of an eStargz layer, https://github.com/containerd/stargz-snapshotter/blob/main/docs/estargz.md.
//
// Such a blob is a tar.gz of many gzip members: the contents of each file, or of each chunk of a large file, start a member of their own,
// and at the end of the blob stand a table of contents and a footer that says where.
//
//	... │ file data, padding, next tar header │ ... │ tar{stargz.index.json} │ footer
//	    └ gzip member: an extent's range            └ gzip member            └ gzip member, 51 bytes
//
// The manifest's annotation containerd.io/snapshot/stargz/toc.digest is the digest of the JSON. Without it the layer is not lazy, and
// neither is one of which a chunk has no digest, or whose table of contents lies in another image.
//
// The table knows modification times to the second only, and no ACLs that the tar has in text form.
package estargz

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/internal/toc"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/inflate"
)

// format is the name in Index.Format and in errors.
const format = "estargz"

// jsonName is the only file of the archive that holds the table of contents.
const jsonName = "stargz.index.json"

// Open reads the table of contents of a layer with one or two reads of its blob.
func Open(l index.Layer, blob io.ReaderAt, limits index.Limits) (*index.Index, error) {
	if err := annotated(l.Annotations); err != nil {
		return nil, fmt.Errorf("%s: %w", format, err)
	}
	x, err := open(l, blob, limits.WithDefaults())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", format, err)
	}
	return x, nil
}

// annotated says whether the annotations are those of an eStargz layer.
func annotated(annotations map[string]string) error {
	for _, other := range []string{toc.StargzChecksum, toc.PodmanChecksum} {
		if _, ok := annotations[other]; ok {
			return fmt.Errorf("%w: annotation %s says it is zstd:chunked", index.ErrNotLazy, other)
		}
	}
	if _, ok := annotations[toc.DigestAnnotation]; !ok {
		return fmt.Errorf("%w: no annotation %s", index.ErrNotLazy, toc.DigestAnnotation)
	}
	return nil
}

func open(l index.Layer, blob io.ReaderAt, limits index.Limits) (*index.Index, error) {
	want, err := toc.AnnotatedDigest(l.Annotations, toc.DigestAnnotation)
	if err != nil {
		return nil, err
	}
	packed, at, err := fetch(l.Size, blob, limits.CompressedBytes)
	if err != nil {
		return nil, err
	}
	json, err := unpack(packed, limits.Bytes)
	if err != nil {
		return nil, err
	}
	if err := toc.Verify(json, want); err != nil {
		return nil, err
	}
	return &index.Index{
		Format: format, Digest: want, Codec: index.Gzip, Hidden: append(toc.Stargz.Hidden(), jsonName),
		Records: func() (index.Reader, error) {
			json, err := unpack(packed, limits.Bytes)
			if err != nil {
				return nil, err
			}
			return toc.NewReader(json, toc.Stargz, at, limits)
		},
	}, nil
}

// Bounds of tailBytes.
const (
	minTailBytes = 16 << 10
	maxTailBytes = 2 << 20
)

// tailBytes is how much of the end of a blob is read at first, in the hope that the table of contents is in it, which saves a round trip.
// It has 0.5 to 3 % of a blob; what is read in vain is less than 0.8 %.
func tailBytes(size int64) int64 { return min(size, max(minTailBytes, min(size/128, maxTailBytes))) }

// fetch returns the compressed table of contents and its position in the blob.
func fetch(size int64, blob io.ReaderAt, most int64) (packed []byte, at int64, err error) {
	if size < footerBytes {
		return nil, 0, fmt.Errorf("no footer in a blob of %d bytes", size)
	}
	read := index.Range{Start: size - tailBytes(size), End: size}
	tail, err := index.ReadRange(blob, read)
	if err != nil {
		return nil, 0, err
	}
	r, err := parseFooter(tail, size)
	if err != nil {
		return nil, 0, err
	}
	if r.Bytes() > most {
		return nil, 0, fmt.Errorf("%w: compressed table of contents of %d bytes, allowed are %d", index.ErrLimit, r.Bytes(), most)
	}
	if r.Start >= read.Start {
		return bytes.Clone(tail[r.Start-read.Start : r.End-read.Start]), r.Start, nil
	}
	packed, err = index.ReadRange(blob, index.Range{Start: r.Start, End: read.Start})
	return append(packed, tail[:r.End-read.Start]...), r.Start, err
}

// unpack returns the JSON of a table of contents.
func unpack(packed []byte, most int64) (io.Reader, error) {
	var z inflate.Reader
	z.Reset(packed)
	archive := tar.NewReader(&z)
	h, err := archive.Next()
	switch {
	case err == io.EOF:
		return nil, errors.New("table of contents: empty archive")
	case err != nil:
		return nil, fmt.Errorf("table of contents: %w", err)
	case h.Name != jsonName || h.Typeflag != tar.TypeReg:
		return nil, fmt.Errorf("table of contents: its archive begins with %.100q, not with the file %s", h.Name, jsonName)
	case h.Size > most:
		return nil, fmt.Errorf("table of contents: %w: %d bytes, allowed are %d", index.ErrLimit, h.Size, most)
	}
	return archive, nil
}
