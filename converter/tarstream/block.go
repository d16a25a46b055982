package tarstream

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
)

const blockBytes = 512

// block is a header block.
type block [blockBytes]byte

// The fields of a header block.
const (
	nameAt, nameLen     = 0, 100
	modeAt              = 100
	uidAt               = 108
	gidAt               = 116
	sizeAt              = 124
	mtimeAt             = 136
	sumAt, sumLen       = 148, 8
	typeAt              = 156
	linkAt, linkLen     = 157, 100
	magicAt             = 257
	devmajorAt          = 329
	devminorAt          = 337
	prefixAt, prefixLen = 345, 155

	starPrefixLen = 131
	starTrailerAt = 508

	gnuAtimeAt    = 345
	gnuCtimeAt    = 357
	gnuSparseAt   = 386
	gnuExtendedAt = 482
	gnuRealSizeAt = 483

	shortLen = 8  // of mode, uid, gid and device numbers
	longLen  = 12 // of sizes and times
)

var zeroBlock block

// format is what the magic of a header says about the meaning of its second half.
type format byte

const (
	formatV7 format = iota
	formatUSTAR
	formatSTAR
	formatGNU
)

func (b *block) format() format {
	switch string(b[magicAt : magicAt+8]) {
	case "ustar  \x00":
		return formatGNU
	default:
		if string(b[magicAt:magicAt+6]) != "ustar\x00" {
			return formatV7
		}
		if string(b[starTrailerAt:]) == "tar\x00" {
			return formatSTAR
		}
		return formatUSTAR
	}
}

// validSum reports whether the checksum is right. Old Sun tars add up signed bytes, so both sums are good.
func (b *block) validSum() bool {
	want, err := parseOctal(b[sumAt : sumAt+sumLen])
	if err != nil {
		return false
	}
	var lanes uint64 // four sums of 16 bits; 128 bytes of 255 go into each
	const mask = 0x00ff00ff00ff00ff
	for i := 0; i < blockBytes; i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		lanes += w&mask + w>>8&mask
	}
	sum := int64(lanes&0xffff + lanes>>16&0xffff + lanes>>32&0xffff + lanes>>48)
	// The field itself counts as spaces.
	for _, c := range b[sumAt : sumAt+sumLen] {
		sum += ' ' - int64(c)
	}
	if sum == want {
		return true
	}
	for i, c := range b {
		if c >= 0x80 && (i < sumAt || i >= sumAt+sumLen) {
			sum -= 256
		}
	}
	return sum == want
}

// text returns a field up to its first NUL.
func (b *block) text(at, length int) []byte { return untilNUL(b[at : at+length]) }

func (b *block) number(name string, at, length int) (int64, error) {
	v, err := parseNumber(b[at : at+length])
	if err != nil {
		return 0, fmt.Errorf("%w: %s field: %w", ErrHeader, name, err)
	}
	return v, nil
}

// appendName appends the name of the entry, prefix included, to dst.
func (b *block) appendName(dst []byte) []byte {
	if p := b.prefix(); len(p) > 0 {
		dst = append(dst, p...)
		dst = append(dst, '/')
	}
	return append(dst, b.text(nameAt, nameLen)...)
}

func (b *block) prefix() []byte {
	switch b.format() {
	case formatUSTAR:
		return b.text(prefixAt, prefixLen)
	case formatSTAR:
		return b.text(prefixAt, starPrefixLen)
	case formatGNU:
		return b.misplacedPrefix()
	default:
		return nil
	}
}

// misplacedPrefix finds the prefix that Go before 1.8 (and so old versions of Docker) wrote into GNU headers, where the access and change
// times belong (golang.org/issue/12594). It is one if the two are not times.
func (b *block) misplacedPrefix() []byte {
	if b[gnuAtimeAt] == 0 {
		return nil
	}
	_, err := parseNumber(b[gnuAtimeAt : gnuAtimeAt+longLen])
	if err == nil && b[gnuCtimeAt] != 0 {
		_, err = parseNumber(b[gnuCtimeAt : gnuCtimeAt+longLen])
	}
	if err == nil {
		return nil
	}
	p := b.text(prefixAt, prefixLen)
	for _, c := range p {
		if c >= 0x80 {
			return nil
		}
	}
	return p
}

func untilNUL(b []byte) []byte {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}

// parseNumber parses a numeric field: base-256 if the first bit is set, octal otherwise.
func parseNumber(b []byte) (int64, error) {
	if b[0]&0x80 != 0 {
		return parseBase256(b)
	}
	return parseOctal(b)
}

// parseBase256 parses a big-endian two's complement number whose first bit is only a mark.
func parseBase256(b []byte) (int64, error) {
	var invert byte
	if b[0]&0x40 != 0 {
		invert = 0xff
	}
	var v uint64
	for i, c := range b {
		c ^= invert
		if i == 0 {
			c &= 0x7f
		}
		if v>>56 != 0 {
			return 0, fmt.Errorf("number % x is longer than 64 bits", b)
		}
		v = v<<8 | uint64(c)
	}
	if v > math.MaxInt64 {
		return 0, fmt.Errorf("number % x is longer than 64 bits", b)
	}
	if invert != 0 {
		return ^int64(v), nil
	}
	return int64(v), nil
}

// parseOctal parses an octal number. Spaces and NULs may stand before it, spaces or a NUL and anything after it. No digits are zero.
func parseOctal(b []byte) (int64, error) {
	i := 0
	for i < len(b) && (b[i] == ' ' || b[i] == 0) {
		i++
	}
	var v int64 // fields have up to 12 digits, so it cannot overflow
	for ; i < len(b) && b[i] >= '0' && b[i] <= '7'; i++ {
		v = v<<3 | int64(b[i]-'0')
	}
	if i < len(b) && b[i] != 0 && len(bytes.Trim(b[i:], " \x00")) > 0 {
		return 0, fmt.Errorf("%q is not an octal number", b)
	}
	return v, nil
}
