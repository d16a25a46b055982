package tartest

import (
	"fmt"
	"strconv"
	"strings"
)

// Segment is a range of data in a sparse file.
type Segment struct{ Offset, Length int64 }

// Segments makes a map of alternating offsets and lengths.
func Segments(offsetsAndLengths ...int64) []Segment {
	list := make([]Segment, 0, len(offsetsAndLengths)/2)
	for i := 0; i < len(offsetsAndLengths); i += 2 {
		list = append(list, Segment{offsetsAndLengths[i], offsetsAndLengths[i+1]})
	}
	return list
}

// SparseData returns contents for the segments, one after the other.
func SparseData(segments []Segment) []byte {
	var n int64
	for _, s := range segments {
		n += s.Length
	}
	return Pattern(int(n), 1)
}

// SparseOld writes a sparse file of the given size in old GNU format: 'S', with extension blocks after the header for more than four segments.
func (b *Builder) SparseOld(h Header, size int64, segments []Segment, data []byte) {
	h.Magic, h.Type, h.Size = GNU, 'S', int64(len(data))
	inner, rest := segments[:min(4, len(segments))], segments[min(4, len(segments)):]
	edit := h.Edit
	h.Edit = func(block []byte) {
		h.entries(block[386:482], inner)
		if len(rest) > 0 {
			block[482] = 1
		}
		h.number(block[483:495], size)
		if edit != nil {
			edit(block)
		}
	}
	b.Header(h)
	for len(rest) > 0 {
		block := make([]byte, BlockBytes)
		n := min(21, len(rest))
		h.entries(block, rest[:n])
		if rest = rest[n:]; len(rest) > 0 {
			block[504] = 1
		}
		b.Raw(block)
	}
	b.Data(data)
}

func (h Header) entries(field []byte, segments []Segment) {
	for i, s := range segments {
		h.number(field[24*i:24*i+12], s.Offset)
		h.number(field[24*i+12:24*i+24], s.Length)
	}
}

// Sparse00 writes a sparse file in PAX format 0.0: the map is a pair of records for each segment.
func (b *Builder) Sparse00(h Header, size int64, segments []Segment, data []byte) {
	r := []string{"GNU.sparse.size", itoa(size), "GNU.sparse.numblocks", itoa(int64(len(segments)))}
	for _, s := range segments {
		r = append(r, "GNU.sparse.offset", itoa(s.Offset), "GNU.sparse.numbytes", itoa(s.Length))
	}
	b.PAX(r...)
	b.Entry(h, data)
}

// Sparse01 writes a sparse file in PAX format 0.1: the map is one record.
func (b *Builder) Sparse01(h Header, size int64, segments []Segment, data []byte) {
	var numbers []string
	for _, s := range segments {
		numbers = append(numbers, itoa(s.Offset), itoa(s.Length))
	}
	b.PAX("GNU.sparse.size", itoa(size), "GNU.sparse.numblocks", itoa(int64(len(segments))),
		"GNU.sparse.map", strings.Join(numbers, ","), "GNU.sparse.name", h.Name)
	h.Name = "./GNUSparseFile.1/f"
	b.Entry(h, data)
}

// Sparse10 writes a sparse file in PAX format 1.0: the map stands before the data. The extra records are alternating keys and values.
func (b *Builder) Sparse10(h Header, size int64, segments []Segment, data []byte, extra ...string) {
	b.PAX(append([]string{"GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", h.Name, "GNU.sparse.realsize", itoa(size)}, extra...)...)
	h.Name = "./GNUSparseFile.1/f"
	b.Entry(h, append(SparseMap10(segments), data...))
}

// SparseMap10 returns the map of PAX format 1.0, in whole blocks.
func SparseMap10(segments []Segment) []byte {
	var m strings.Builder
	fmt.Fprintf(&m, "%d\n", len(segments))
	for _, s := range segments {
		fmt.Fprintf(&m, "%d\n%d\n", s.Offset, s.Length)
	}
	return append([]byte(m.String()), make([]byte, -m.Len()&(BlockBytes-1))...)
}

func itoa(v int64) string { return strconv.FormatInt(v, 10) }
