package tarstream

import (
	"bytes"
	"fmt"
	"io"
)

// paxSparse are the GNU.sparse.* records of one entry.
type paxSparse struct {
	name         string
	major, minor string
	size         int64
	blocks       int64     // announced number of segments
	segments     []Segment // of formats 0.0 and 0.1
	listed       bool      // there are records of format 0.0
	mapped       bool      // there is a map of format 0.1
	halfOpen     bool      // the last segment has no length yet
	seen         bool      // there is any such record
}

func (s *paxSparse) emptied() paxSparse {
	return paxSparse{size: absent, blocks: absent, segments: s.segments[:0]}
}

// set applies the record with the given key, GNU.sparse.<name>.
func (s *paxSparse) set(key, name, value []byte, most int) (err error) {
	s.seen = true
	switch string(name) {
	case "major":
		s.major = clip(value)
	case "minor":
		s.minor = clip(value)
	case "name":
		s.name, err = paxName(key, value)
	case "size", "realsize":
		s.size, err = paxNumber(key, value)
	case "numblocks":
		s.blocks, err = paxNumber(key, value)
	case "offset":
		if s.halfOpen {
			return fmt.Errorf("%w: two offsets in a row in a sparse map", ErrHeader)
		}
		s.halfOpen, s.listed = true, true
		err = s.add(value, most)
	case "numbytes":
		if !s.halfOpen {
			return fmt.Errorf("%w: length without offset in a sparse map", ErrHeader)
		}
		s.halfOpen = false
		s.segments[len(s.segments)-1].Length, err = sparseNumber(value)
	case "map":
		s.mapped = true
		err = s.parseMap(value, most)
	}
	return err
}

// add begins a segment.
func (s *paxSparse) add(offset []byte, most int) error {
	v, err := sparseNumber(offset)
	if err != nil {
		return err
	}
	s.segments, err = appendSegment(s.segments, Segment{Offset: v}, most)
	return err
}

// parseMap parses the "offset,length,offset,length" of format 0.1.
func (s *paxSparse) parseMap(value []byte, most int) error {
	s.segments = s.segments[:0]
	for more := len(value) > 0; more; {
		var offset, length []byte
		offset, value, more = bytes.Cut(value, []byte(","))
		if !more {
			return fmt.Errorf("%w: offset without length in a sparse map", ErrHeader)
		}
		length, value, more = bytes.Cut(value, []byte(","))
		if err := s.add(offset, most); err != nil {
			return err
		}
		n, err := sparseNumber(length)
		if err != nil {
			return err
		}
		s.segments[len(s.segments)-1].Length = n
	}
	return nil
}

func sparseNumber(b []byte) (int64, error) {
	v, err := parseDecimal(b)
	if err != nil {
		return 0, fmt.Errorf("%w: sparse map: %w", ErrHeader, err)
	}
	return v, nil
}

func appendSegment(list []Segment, s Segment, most int) ([]Segment, error) {
	if len(list) >= most {
		return nil, fmt.Errorf("%w: sparse map with more than %d segments", ErrLimit, most)
	}
	return append(list, s), nil
}

// setSparse reads the sparse map of the entry, if it has one.
func (r *Reader) setSparse(h *Header) error {
	old, pax := r.blk[typeAt] == 'S', r.pax.sparse.seen
	switch {
	case !old && !pax:
		return nil
	case old && pax:
		return fmt.Errorf("%w: two sparse maps", ErrHeader)
	case old:
		return r.oldSparse(h)
	default:
		return r.paxSparse(h)
	}
}

func (r *Reader) paxSparse(h *Header) error {
	s := &r.pax.sparse
	if s.size != absent {
		h.Size = s.size
	}
	switch version := s.major + "." + s.minor; {
	case version == "1.0":
		if err := r.readMap(); err != nil {
			return err
		}
	case s.listed && s.mapped:
		return fmt.Errorf("%w: two sparse maps", ErrHeader)
	case version != "." && version != "0.0" && version != "0.1":
		return fmt.Errorf("%w: sparse format %q is not supported", ErrHeader, version)
	case !s.listed && !s.mapped:
		return fmt.Errorf("%w: sparse file without map", ErrHeader)
	case s.halfOpen:
		return fmt.Errorf("%w: offset without length in a sparse map", ErrHeader)
	case s.blocks != int64(len(s.segments)):
		return fmt.Errorf("%w: sparse map of %d segments, but GNU.sparse.numblocks is not that", ErrHeader, len(s.segments))
	}
	return r.useSegments(h)
}

// readMap reads the map of format 1.0, which comes before the data: decimal numbers, each with a newline, in whole blocks.
func (r *Reader) readMap() error {
	s := &r.pax.sparse
	s.segments = s.segments[:0]
	m := mapReader{r: r}
	count, err := m.number()
	if err != nil {
		return err
	}
	for range count {
		var seg Segment
		if seg.Offset, err = m.number(); err != nil {
			return err
		}
		if seg.Length, err = m.number(); err != nil {
			return err
		}
		if s.segments, err = appendSegment(s.segments, seg, r.limits.SparseSegments); err != nil {
			return err
		}
	}
	return nil
}

// mapReader reads the numbers of a sparse map of format 1.0 out of the stored data.
type mapReader struct {
	r    *Reader
	left []byte // of the block being parsed
}

func (m *mapReader) number() (int64, error) {
	var digits [20]byte
	n := 0
	for {
		if len(m.left) == 0 {
			if err := m.nextBlock(); err != nil {
				return 0, err
			}
		}
		c := m.left[0]
		m.left = m.left[1:]
		if c == '\n' {
			return sparseNumber(digits[:n])
		}
		if n == len(digits) {
			return 0, fmt.Errorf("%w: sparse map: number of more than %d digits", ErrHeader, n)
		}
		digits[n] = c
		n++
	}
}

func (m *mapReader) nextBlock() error {
	if m.r.stored < blockBytes {
		return fmt.Errorf("%w: sparse map is longer than the data", ErrHeader)
	}
	b, err := m.r.src.block()
	if err != nil {
		return m.r.truncated(err, "sparse map")
	}
	m.r.stored -= blockBytes
	m.left = b
	return nil
}

const (
	gnuEntryBytes      = 2 * longLen
	gnuEntries         = 4  // in a header block
	gnuExtendedEntries = 21 // in an extension block
)

// oldSparse reads the map of the old GNU format: four segments in the header, 21 in each extension block that follows it.
func (r *Reader) oldSparse(h *Header) error {
	if r.blk.format() != formatGNU {
		// star has another layout for this type.
		return fmt.Errorf("%w: sparse file that is not in GNU format", ErrHeader)
	}
	var err error
	if h.Size, err = r.blk.number("real size", gnuRealSizeAt, longLen); err != nil {
		return err
	}
	if err := r.oldEntries(r.blk[gnuSparseAt:], gnuEntries); err != nil {
		return err
	}
	for more := r.blk[gnuExtendedAt] != 0; more; {
		b, err := r.src.block()
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return r.truncated(err, "sparse map")
		}
		if err != nil {
			return err
		}
		if err := r.oldEntries(b, gnuExtendedEntries); err != nil {
			return err
		}
		more = b[gnuExtendedEntries*gnuEntryBytes] != 0
	}
	return r.useSegments(h)
}

// oldEntries parses up to n segments. An empty one ends the list of its block.
func (r *Reader) oldEntries(b []byte, n int) error {
	list := &r.pax.sparse.segments
	for ; n > 0; n-- {
		offset, length := b[:longLen], b[longLen:gnuEntryBytes]
		b = b[gnuEntryBytes:]
		if offset[0] == 0 && length[0] == 0 {
			return nil
		}
		if offset[0] == 0 || length[0] == 0 {
			return fmt.Errorf("%w: incomplete segment in a sparse map", ErrHeader)
		}
		var s Segment
		var err error
		if s.Offset, err = parseNumber(offset); err == nil {
			s.Length, err = parseNumber(length)
		}
		if err != nil {
			return fmt.Errorf("%w: sparse map: %w", ErrHeader, err)
		}
		if *list, err = appendSegment(*list, s, r.limits.SparseSegments); err != nil {
			return err
		}
	}
	return nil
}

// useSegments checks the map and gives it to the header, without empty segments and with neighbours joined.
func (r *Reader) useSegments(h *Header) error {
	if err := r.checkSize(h.Size); err != nil {
		return err
	}
	list := r.pax.sparse.segments
	out := list[:0]
	var end, sum int64
	for _, s := range list {
		if s.Length < 0 || s.Offset < end || s.Offset > h.Size-s.Length {
			return fmt.Errorf("%w: sparse map: segment of %d bytes at %d, after %d, in a file of %d bytes", ErrHeader, s.Length, s.Offset, end, h.Size)
		}
		sum += s.Length
		if s.Length > 0 {
			if len(out) > 0 && s.Offset == end {
				out[len(out)-1].Length += s.Length
			} else {
				out = append(out, s)
			}
		}
		end = s.Offset + s.Length
	}
	if sum != r.stored {
		return fmt.Errorf("%w: sparse map of %d bytes for %d bytes of data", ErrHeader, sum, r.stored)
	}
	if sum == h.Size {
		return nil
	}
	if h.Sparse = out; out == nil {
		h.Sparse = []Segment{} // nil would mean that there are no holes
	}
	return nil
}
