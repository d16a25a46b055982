package startup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Bounds of an ELF file. What exceeds them is no ELF file for us.
const (
	maxSegments = 128
	maxDynamic  = 4096 // entries
	maxNeeded   = 128
	// maxNeededBytes bounds the names of what is needed: many can be the same bytes of a file.
	maxNeededBytes = 64 << 10
	maxName        = 4096
	maxTable       = 16 << 20
	// maxWritable is how much of the writable segments the loader is believed to relocate.
	maxWritable = 8 << 20
	// unknownTable is how much is read of a table whose end nothing tells.
	unknownTable = 64 << 10
)

const (
	elfMagic = "\x7fELF"
	page     = 4096
)

// object is what the kernel and the dynamic loader take from an ELF file.
type object struct {
	order          binary.ByteOrder
	machine        uint16
	interp         string
	needed         []string
	rpath, runpath string // lists with colons
	// ranges are what the two read of the file in any case, in whole pages and in order.
	ranges []extent
}

// extent is a range of a file.
type extent struct{ from, to int64 }

// segment is an entry of the program header table.
type segment struct {
	kind, flags        uint32
	offset, addr, size uint64 // size is that in the file, and lies in it
}

// Numbers of the ELF specification.
const (
	ptLoad, ptDynamic, ptInterp = 1, 2, 3
	flagWrite                   = 2

	dtNeeded, dtPltRelSz, dtHash, dtStrtab, dtSymtab, dtRela, dtRelaSz, dtStrSz = 1, 2, 4, 5, 6, 7, 8, 10
	dtRpath, dtRel, dtRelSz, dtJmpRel, dtRunpath, dtRelrSz, dtRelr              = 15, 17, 18, 23, 29, 35, 36
	dtGNUHash, dtVersym, dtVerdef, dtVerneed                                    = 0x6ffffef5, 0x6ffffff0, 0x6ffffffc, 0x6ffffffe
)

// tables are the tags of the dynamic section that hold the address of a table, and those that hold its length, 0 if there is none.
var tables = [][2]uint64{
	{dtHash, 0}, {dtGNUHash, 0}, {dtSymtab, 0}, {dtVersym, 0}, {dtVerdef, 0}, {dtVerneed, 0},
	{dtStrtab, dtStrSz}, {dtRela, dtRelaSz}, {dtRel, dtRelSz}, {dtJmpRel, dtPltRelSz}, {dtRelr, dtRelrSz},
}

// parseELF reads the headers of a 64-bit ELF file of the given size.
func parseELF(r io.ReaderAt, size int64) (*object, error) {
	p := parser{r: r, size: uint64(max(size, 0))}
	o, err := p.parse()
	if err != nil {
		return nil, fmt.Errorf("ELF: %w", err)
	}
	return o, nil
}

type parser struct {
	r        io.ReaderAt
	size     uint64
	order    binary.ByteOrder
	segments []segment
	ranges   []extent
}

var errShort = errors.New("a part lies outside of the file")

// bytes reads a part of the file.
func (p *parser) bytes(off, n uint64) ([]byte, error) {
	if off > p.size || n > p.size-off {
		return nil, errShort
	}
	b := make([]byte, n)
	if _, err := p.r.ReadAt(b, int64(off)); err != nil {
		return nil, err
	}
	return b, nil
}

func (p *parser) parse() (*object, error) {
	head, err := p.bytes(0, 64)
	if err != nil {
		return nil, err
	}
	switch {
	case string(head[:4]) != elfMagic || head[4] != 2:
		return nil, errors.New("not a 64-bit file")
	case head[5] == 1:
		p.order = binary.LittleEndian
	case head[5] == 2:
		p.order = binary.BigEndian
	default:
		return nil, errors.New("no byte order")
	}
	entry, table := p.order.Uint64(head[24:]), p.order.Uint64(head[32:])
	entrySize, count := p.order.Uint16(head[54:]), p.order.Uint16(head[56:])
	if entrySize != 56 || count > maxSegments {
		return nil, fmt.Errorf("%d program headers of %d bytes", count, entrySize)
	}
	b, err := p.bytes(table, uint64(count)*56)
	if err != nil {
		return nil, err
	}
	o := &object{order: p.order, machine: p.order.Uint16(head[18:])}
	p.add(0, page)
	p.add(table, uint64(len(b)))
	for ; len(b) > 0; b = b[56:] {
		s := segment{
			kind: p.order.Uint32(b), flags: p.order.Uint32(b[4:]), offset: p.order.Uint64(b[8:]), addr: p.order.Uint64(b[16:]), size: p.order.Uint64(b[32:]),
		}
		if s.offset > p.size || s.size > p.size-s.offset {
			if s.kind == ptLoad || s.kind == ptDynamic || s.kind == ptInterp {
				return nil, errShort
			}
			continue
		}
		p.segments = append(p.segments, s)
	}
	if err := p.segmentsOf(o); err != nil {
		return nil, err
	}
	if off, left := p.offset(entry); left > 0 && entry != 0 {
		p.add(off, 1)
	}
	o.ranges = merge(p.ranges)
	return o, nil
}

// segmentsOf reads what the segments are for.
func (p *parser) segmentsOf(o *object) error {
	writable := uint64(maxWritable)
	dynamic := false
	for _, s := range p.segments {
		switch {
		case s.kind == ptInterp && o.interp == "" && s.size > 0 && s.size <= maxName:
			b, err := p.bytes(s.offset, s.size)
			if err != nil {
				return err
			}
			name, _, _ := bytes.Cut(b, []byte{0})
			o.interp = string(name)
			p.add(s.offset, s.size)
		case s.kind == ptDynamic && !dynamic: // a loader knows one
			dynamic = true
			if err := p.dynamic(o, s); err != nil {
				return err
			}
		case s.kind == ptLoad && s.flags&flagWrite != 0:
			n := min(s.size, writable)
			p.add(s.offset, n)
			writable -= n
		}
	}
	return nil
}

// dynamic reads the dynamic section.
func (p *parser) dynamic(o *object, s segment) error {
	b, err := p.bytes(s.offset, min(s.size/16, maxDynamic)*16)
	if err != nil {
		return err
	}
	p.add(s.offset, uint64(len(b)))
	values := map[uint64]uint64{}
	var needed []uint64
	for ; len(b) > 0; b = b[16:] {
		tag, value := p.order.Uint64(b), p.order.Uint64(b[8:])
		if tag == 0 {
			break
		}
		if tag == dtNeeded {
			needed = append(needed, value)
		} else {
			values[tag] = value
		}
	}
	names, left := p.offset(values[dtStrtab])
	if left == 0 {
		return nil // nothing has a name
	}
	left = maxNeededBytes
	for _, off := range needed[:min(len(needed), maxNeeded)] {
		if name := p.name(names, off); name != "" && uint64(len(name)) <= left {
			left -= uint64(len(name))
			o.needed = append(o.needed, name)
		}
	}
	if off, ok := values[dtRunpath]; ok {
		o.runpath = p.name(names, off)
	} else if off, ok := values[dtRpath]; ok {
		o.rpath = p.name(names, off)
	}
	p.tables(values)
	return nil
}

// tables adds those that the dynamic section names. One without a length ends where the next one begins at the latest.
func (p *parser) tables(values map[uint64]uint64) {
	var begins []uint64 // offsets
	for _, t := range tables {
		if off, left := p.offset(values[t[0]]); left > 0 && values[t[0]] != 0 {
			begins = append(begins, off)
		}
	}
	slices.Sort(begins)
	for _, t := range tables {
		off, left := p.offset(values[t[0]])
		if left == 0 || values[t[0]] == 0 {
			continue
		}
		length := values[t[1]]
		if t[1] == 0 {
			length = unknownTable
			if next, _ := slices.BinarySearch(begins, off+1); next < len(begins) {
				length = begins[next] - off
			}
		}
		p.add(off, min(length, left, maxTable))
	}
}

// name reads a string of the string table, or the empty one if it is none.
func (p *parser) name(table, off uint64) string {
	if off > p.size-table { // table lies in the file
		return ""
	}
	b, err := p.bytes(table+off, min(maxName, p.size-table-off))
	if err != nil {
		return ""
	}
	end := bytes.IndexByte(b, 0)
	return string(b[:max(end, 0)])
}

// offset is where in the file the byte with an address is, and how many bytes its segment has from there on. None if there is no such byte.
func (p *parser) offset(addr uint64) (off, left uint64) {
	for _, s := range p.segments {
		if s.kind == ptLoad && addr >= s.addr && addr-s.addr < s.size {
			return s.offset + (addr - s.addr), s.size - (addr - s.addr)
		}
	}
	return 0, 0
}

// add has a part of the file read, as far as it lies in the file.
func (p *parser) add(off, n uint64) {
	if off >= p.size || n == 0 {
		return
	}
	p.ranges = append(p.ranges, extent{int64(off), int64(off + min(n, p.size-off))})
}

// merge widens extents to whole pages, and sorts and joins them.
func merge(all []extent) []extent {
	for i, x := range all {
		all[i] = extent{x.from / page * page, (x.to + page - 1) / page * page}
	}
	slices.SortFunc(all, func(a, b extent) int { return int(min(max(a.from-b.from, -1), 1)) })
	var merged []extent
	for _, x := range all {
		if last := len(merged) - 1; last >= 0 && x.from <= merged[last].to {
			merged[last].to = max(merged[last].to, x.to)
		} else {
			merged = append(merged, x)
		}
	}
	return merged
}
