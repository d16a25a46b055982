package toc

import (
	"errors"
	"fmt"
	"io"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tarstream"
)

// record makes a record of an entry and of the chunks that follow it.
func (r *Reader) record(first *entry) (*index.Record, error) {
	if first.Type == typeChunk {
		return nil, errors.New("chunk without a file before it")
	}
	h, err := first.header(r.limits)
	if err != nil {
		return nil, err
	}
	record := &index.Record{Header: h}
	if h.Type != tarstream.Regular || h.Size == 0 {
		return record, nil
	}
	if err := r.addExtents(record, first); err != nil {
		return nil, err
	}
	return record, nil
}

// addExtents reads the chunks of a file, of which its own entry is the first.
func (r *Reader) addExtents(record *index.Record, first *entry) error {
	var at int64
	chunk := *first
	for {
		x, err := r.extent(&chunk, at, record.Size)
		if err != nil {
			return fmt.Errorf("chunk at %d: %w", at, err)
		}
		record.Extents = append(record.Extents, x)
		at += x.Length
		next, err := r.peek()
		if err != nil && err != io.EOF {
			return err
		}
		if err == io.EOF || next.Type != typeChunk {
			break
		}
		if next.Name != "" && next.Name != first.Name {
			return fmt.Errorf("followed by a chunk of %s", quote(next.Name))
		}
		if chunk, err = r.take(); err != nil {
			return err
		}
	}
	if at != record.Size {
		return fmt.Errorf("chunks of %d bytes together, size is %d", at, record.Size)
	}
	if r.dialect == Podman {
		return r.setExplicitEnds(record.Extents, first.EndOffset)
	}
	return nil
}

// extent makes an extent of a chunk, which must begin at a position of the file. The end of its range is not set.
func (r *Reader) extent(c *entry, at, size int64) (x index.Extent, err error) {
	length := c.ChunkSize
	if length == 0 {
		length = size - c.ChunkOffset
	}
	if c.ChunkOffset != at || length <= 0 || length > size-at {
		return x, fmt.Errorf("it says %d bytes at %d, in a file of %d", c.ChunkSize, c.ChunkOffset, size)
	}
	x = index.Extent{Offset: at, Length: length, Blob: index.Range{Start: c.Offset}}
	if r.dialect == Podman {
		switch c.ChunkType {
		case "":
		case "zeros":
			x.Hole = true
			return x, nil
		default:
			return x, fmt.Errorf("unknown chunk type %s", quote(c.ChunkType))
		}
	} else {
		x.Skip = c.InnerOffset
	}
	if c.Offset < 0 || c.Offset >= r.dataEnd {
		return x, fmt.Errorf("data at %d of the blob, of which %d bytes have data", c.Offset, r.dataEnd)
	}
	if length > r.limits.ExtentBytes {
		return x, fmt.Errorf("%w: %d bytes, allowed are %d", index.ErrLimit, length, r.limits.ExtentBytes)
	}
	if x.Skip < 0 || x.Skip > r.limits.SkipBytes {
		return x, fmt.Errorf("%w: inner offset %d is not in 0 to %d", index.ErrLimit, x.Skip, r.limits.SkipBytes)
	}
	sum := c.ChunkDigest
	if sum == "" && length == size {
		sum = c.Digest // the only chunk is the file
	}
	x.Digest, err = parseDigest(sum)
	return x, err
}

// setExplicitEnds sets the ends of the ranges as Podman says: a file's last chunk ends where its entry says, the others where the next begins.
func (r *Reader) setExplicitEnds(extents []index.Extent, end int64) error {
	for i := len(extents) - 1; i >= 0; i-- {
		x := &extents[i]
		start := x.Blob.Start
		if x.Hole {
			x.Blob = index.Range{}
		} else {
			x.Blob.End = end
			if err := r.checkRange(x.Blob); err != nil {
				return err
			}
		}
		end = start
	}
	return nil
}

// setEnds sets the ends of ranges that the record's chunks reveal, which may be those of records before it.
func (r *Reader) setEnds(record *index.Record) error {
	for i := range record.Extents {
		x := &record.Extents[i]
		switch start := x.Blob.Start; {
		case start < r.member:
			return fmt.Errorf("chunk at %d: its data begin at %d, before those of the chunk before it", x.Offset, start)
		case start > r.member:
			if err := r.close(start); err != nil {
				return err
			}
			r.ready, r.member, r.owner = len(r.waiting), start, record.Name
		}
		r.open = append(r.open, x)
	}
	return nil
}

// close ends the compressed stream that the open chunks share.
func (r *Reader) close(end int64) error {
	for _, x := range r.open {
		x.Blob.End = end
	}
	if len(r.open) > 0 {
		if err := r.checkRange(r.open[0].Blob); err != nil {
			return fmt.Errorf("compressed stream that begins with %s: %w", quote(r.owner), err)
		}
	}
	r.open = r.open[:0]
	return nil
}

func (r *Reader) checkRange(b index.Range) error {
	if !b.Within(r.dataEnd) {
		return fmt.Errorf("data in %s of the blob, of which %d bytes have data", b, r.dataEnd)
	}
	if b.Bytes() > r.limits.RangeBytes {
		return fmt.Errorf("%w: data in %s of the blob, allowed are %d bytes", index.ErrLimit, b, r.limits.RangeBytes)
	}
	return nil
}
