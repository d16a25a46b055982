// Package tartest builds tar archives byte by byte, for tests that need forms no writer produces: every GNU sparse format, base-256
// numbers, wrong checksums, contradicting headers, missing ends.
//
//	var b tartest.Builder
//	b.PAX("mtime", "-1.5")
//	b.Entry(tartest.Header{Name: "file", Type: '0', Mode: 0o644}, []byte("data"))
//	archive := b.End()
//
// Builder writes what it is told and corrects nothing. File is the level above: a description of a file from which Pack makes a proper
// archive, and which a test can compare with what came out at the other end. Edge and Duplicates are tables of such files.
package tartest

import (
	"bytes"
	"fmt"
	"strconv"
)

// BlockBytes is the unit of tar archives.
const BlockBytes = 512

// Magic says which format a header claims to have.
type Magic byte

// The formats. PAX has the magic of ustar.
const (
	USTAR Magic = iota
	V7
	GNU
	Star
)

// Sum says how the checksum of a header is made.
type Sum byte

// The checksums: as POSIX says, as Sun's tar made it, and a wrong one.
const (
	Unsigned Sum = iota
	Signed
	Wrong
)

// Header is one header block.
type Header struct {
	Magic          Magic
	Sum            Sum
	Name, Linkname string // cut at 100 bytes
	Prefix         string
	Type           byte
	// Numbers that do not fit their fields in octal are written in base-256.
	Mode, UID, GID, Size, ModTime, Devmajor, Devminor int64
	// Base256 writes all numbers in base-256.
	Base256 bool
	// Edit may change the block before the checksum is made.
	Edit func(block []byte)
}

// Builder collects an archive.
type Builder struct {
	buf bytes.Buffer
}

// Len returns the number of bytes so far, which is the offset of what is written next.
func (b *Builder) Len() int { return b.buf.Len() }

// Bytes returns the archive so far, without an end mark.
func (b *Builder) Bytes() []byte { return b.buf.Bytes() }

// End writes two zero blocks and returns the archive.
func (b *Builder) End() []byte {
	b.Raw(make([]byte, 2*BlockBytes))
	return b.Bytes()
}

// Raw writes bytes as they are.
func (b *Builder) Raw(p []byte) { b.buf.Write(p) }

// Data writes bytes and fills up the last block with zeros.
func (b *Builder) Data(p []byte) {
	b.Raw(p)
	b.Raw(make([]byte, -len(p)&(BlockBytes-1)))
}

// Header writes a header block as described.
func (b *Builder) Header(h Header) { b.Raw(h.Block()) }

// Entry writes a header whose size is that of the data, and the data.
func (b *Builder) Entry(h Header, data []byte) {
	h.Size = int64(len(data))
	b.Header(h)
	b.Data(data)
}

// PAX writes a local PAX header with records of alternating keys and values.
func (b *Builder) PAX(keysAndValues ...string) {
	b.Entry(Header{Name: "PaxHeaders/x", Type: 'x', Mode: 0o644}, Records(keysAndValues...))
}

// Global writes a global PAX header.
func (b *Builder) Global(keysAndValues ...string) {
	b.Entry(Header{Name: "PaxHeaders/g", Type: 'g', Mode: 0o644}, Records(keysAndValues...))
}

// LongName writes a GNU header with the name of the next entry.
func (b *Builder) LongName(name string) { b.long('L', name) }

// LongLink writes a GNU header with the link target of the next entry.
func (b *Builder) LongLink(name string) { b.long('K', name) }

func (b *Builder) long(t byte, name string) {
	b.Entry(Header{Magic: GNU, Name: "././@LongLink", Type: t}, append([]byte(name), 0))
}

// Records encodes PAX records of alternating keys and values.
func Records(keysAndValues ...string) []byte {
	var out []byte
	for i := 0; i < len(keysAndValues); i += 2 {
		out = append(out, record(keysAndValues[i], keysAndValues[i+1])...)
	}
	return out
}

// record encodes one PAX record. Its length counts its own digits.
func record(key, value string) string {
	rest := " " + key + "=" + value + "\n"
	n := len(rest)
	for len(strconv.Itoa(n))+len(rest) != n {
		n = len(strconv.Itoa(n)) + len(rest)
	}
	return strconv.Itoa(n) + rest
}

// Block returns the header block.
func (h Header) Block() []byte {
	b := make([]byte, BlockBytes)
	copy(b[0:100], h.Name)
	h.number(b[100:108], h.Mode)
	h.number(b[108:116], h.UID)
	h.number(b[116:124], h.GID)
	h.number(b[124:136], h.Size)
	h.number(b[136:148], h.ModTime)
	b[156] = h.Type
	copy(b[157:257], h.Linkname)
	if h.Magic != V7 {
		h.second(b)
	}
	if h.Edit != nil {
		h.Edit(b)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", h.sum(b)))
	return b
}

// second writes the part that v7 does not have.
func (h Header) second(b []byte) {
	h.number(b[329:337], h.Devmajor)
	h.number(b[337:345], h.Devminor)
	copy(b[345:500], h.Prefix)
	switch h.Magic {
	case GNU:
		copy(b[257:265], "ustar  \x00")
	case Star:
		copy(b[508:], "tar\x00")
		fallthrough
	default:
		copy(b[257:265], "ustar\x0000")
	}
}

func (h Header) number(field []byte, v int64) {
	digits := len(field) - 1
	if h.Base256 || v < 0 || v >= 1<<(3*digits) {
		PutBase256(field, v)
		return
	}
	copy(field, fmt.Sprintf("%0*o", digits, v))
}

// PutBase256 fills a field with a number in GNU's binary form.
func PutBase256(field []byte, v int64) {
	for i := len(field) - 1; i >= 0; i-- {
		field[i] = byte(v)
		v >>= 8
	}
	field[0] |= 0x80
}

func (h Header) sum(b []byte) int64 {
	var sum int64
	for i, c := range b {
		switch {
		case i >= 148 && i < 156:
			sum += ' '
		case h.Sum == Signed:
			sum += int64(int8(c))
		default:
			sum += int64(c)
		}
	}
	if h.Sum == Wrong {
		sum++
	}
	return sum
}
