// Package toc reads the table of contents that eStargz and both dialects of zstd:chunked have in common: JSON with an entry for each
// entry of the tar, and one for each further chunk of a file.
//
//	{"version": 1, "entries": [
//	  {"name": "bin/", "type": "dir", "mode": 493},
//	  {"name": "bin/sh", "type": "reg", "size": 9, "offset": 120, "chunkSize": 5, "chunkDigest": "sha256:..."},
//	  {"name": "bin/sh", "type": "chunk", "offset": 300, "chunkOffset": 5, "chunkDigest": "sha256:..."}]}
//
// The dialects differ in how they say where compressed data end:
//
//   - Stargz does not say it: a chunk's data end before the next larger offset in the list. Several chunks may share an offset; then
//     innerOffset is their position in the decompressed stream.
//   - Podman says it: a file's data end at its endOffset, each chunk's at the next chunk's offset. Chunks of type "zeros" are holes.
//
// Stargz has two landmarks, files in the root which say how much of the blob to fetch first. They are not part of the image.
package toc

import (
	"fmt"
	"io"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tarstream"
)

// Dialect is who wrote a table of contents.
type Dialect uint8

// The dialects.
const (
	Stargz Dialect = iota
	Podman
)

// The landmarks of Stargz.
const (
	prefetchLandmark   = ".prefetch.landmark"
	noPrefetchLandmark = ".no.prefetch.landmark"
)

// Hidden returns the names of the files that have no records.
func (d Dialect) Hidden() []string {
	if d == Stargz {
		return []string{prefetchLandmark, noPrefetchLandmark}
	}
	return nil
}

// maxWaiting is how many records are held back until it is known where their data end. It bounds memory: one takes about 300 bytes. Writers
// put a few thousand files at most into one compressed stream.
const maxWaiting = 128 << 10

// Reader turns a table of contents into records.
type Reader struct {
	json    *scanner
	dialect Dialect
	limits  index.Limits
	dataEnd int64 // position in the blob before which all data lie

	ahead    entry // read, but not part of a record yet
	aheadErr error // what came in its place
	hasAhead bool
	entries  int
	prefetch int64

	waiting []*index.Record // records in order, of which the first `ready` are complete
	ready   int
	member  int64           // where the compressed stream begins in which the last chunk lies; before the first chunk -1
	owner   string          // the file that the stream begins with
	open    []*index.Extent // the chunks in it, whose end is not known yet
	err     error
}

var _ index.Reader = (*Reader)(nil)

// NewReader reads JSON from r, of which the digest must have been checked. All data lie in the first dataEnd bytes of the blob.
func NewReader(r io.Reader, d Dialect, dataEnd int64, l index.Limits) (*Reader, error) {
	s, err := newScanner(r)
	if err != nil {
		return nil, fmt.Errorf("table of contents: %w", err)
	}
	return &Reader{json: s, dialect: d, dataEnd: dataEnd, limits: l.WithDefaults(), member: -1}, nil
}

// Next implements index.Reader.
func (r *Reader) Next() (*index.Record, error) {
	for r.ready == 0 && r.err == nil {
		r.err = r.read()
	}
	if r.ready == 0 {
		return nil, r.err
	}
	next := r.waiting[0]
	r.waiting[0] = nil
	r.waiting = r.waiting[1:]
	r.ready--
	return next, nil
}

// Prefetch implements index.Reader.
func (r *Reader) Prefetch() int64 { return r.prefetch }

// read reads one more record. After the last one all that wait are ready, and it returns io.EOF.
func (r *Reader) read() error {
	first, err := r.take()
	if err == io.EOF {
		if err := r.close(r.dataEnd); err != nil {
			return err
		}
		r.ready = len(r.waiting)
		return io.EOF
	}
	if err != nil {
		return fmt.Errorf("table of contents after %d entries: %w", r.entries, err)
	}
	record, err := r.record(&first)
	if err == nil && record.Type == tarstream.Regular && r.dialect == Stargz {
		err = r.setEnds(record)
	}
	if err != nil {
		return fmt.Errorf("entry %s: %w", quote(first.Name), err)
	}
	if r.landmark(record) {
		return nil
	}
	r.waiting = append(r.waiting, record)
	if len(r.open) == 0 {
		r.ready = len(r.waiting)
	}
	if len(r.waiting)-r.ready > maxWaiting {
		return fmt.Errorf("entry %s: %w: more than %d files in or behind the compressed stream at %d", quote(first.Name), index.ErrLimit, maxWaiting, r.member)
	}
	return nil
}

// landmark says whether a record is one of the landmarks, and learns from it.
func (r *Reader) landmark(record *index.Record) bool {
	if r.dialect != Stargz || record.Type != tarstream.Regular {
		return false
	}
	switch record.Name {
	case prefetchLandmark:
		if len(record.Extents) > 0 {
			r.prefetch = record.Extents[0].Blob.Start
		}
		return true
	case noPrefetchLandmark:
		return true
	}
	return false
}

// take returns the next entry, peek leaves it in its place.
func (r *Reader) take() (entry, error) {
	e, err := r.peek()
	r.hasAhead = err != nil // an error stays
	return *e, err
}

func (r *Reader) peek() (*entry, error) {
	if r.hasAhead {
		return &r.ahead, r.aheadErr
	}
	r.hasAhead, r.aheadErr = true, r.json.next(&r.ahead)
	if r.aheadErr == nil {
		if r.entries++; r.entries > r.limits.Entries {
			r.aheadErr = fmt.Errorf("%w: more than %d entries", index.ErrLimit, r.limits.Entries)
		}
	}
	return &r.ahead, r.aheadErr
}
