package estargz

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
)

// A footer is an empty gzip member whose header has an extra field (RFC 1952, section 2.3.1.1):
//
//	 0:4   1f 8b 08 04            gzip, deflate, with an extra field
//	 4:10  time, flags, system    whatever they are
//	10:12  length of the extra field, little endian
//	12:..  extra field
//	  ..   01 00 00 ff ff         an empty stored block
//	  ..   8 bytes                CRC and length
//
// and the extra field is one of
//
//	eStargz        "SG" 22 (16 bits) offset "STARGZ"        51 bytes together
//	CRFS           offset "STARGZ"                          47
//	external       "SG" 17 (16 bits) "STARGZEXTERNALTOC"    46
//
// where offset is the position of the table of contents in 16 hexadecimal digits.
const (
	footerBytes  = 51
	extraAt      = 12
	offsetDigits = 16
	magic        = "STARGZ"
	external     = "STARGZEXTERNALTOC"
)

// parseFooter finds the table of contents of a blob in the blob's last bytes, at least footerBytes of them.
func parseFooter(tail []byte, size int64) (index.Range, error) {
	for _, prefix := range []string{subfield(offsetDigits + len(magic)), ""} {
		digits, at, ok := extra(tail, prefix, offsetDigits+len(magic))
		if !ok || string(digits[offsetDigits:]) != magic {
			continue
		}
		start, err := strconv.ParseUint(string(digits[:offsetDigits]), 16, 63)
		if err != nil {
			return index.Range{}, fmt.Errorf("footer: offset of the table of contents: %w", err)
		}
		toc := index.Range{Start: int64(start), End: size - int64(len(tail)-at)}
		if !toc.Within(size) {
			return index.Range{}, fmt.Errorf("footer: table of contents in %s of a blob of %d", toc, size)
		}
		return toc, nil
	}
	if text, _, ok := extra(tail, subfield(len(external)), len(external)); ok && string(text) == external {
		return index.Range{}, fmt.Errorf("%w: its table of contents is in another image", index.ErrNotLazy)
	}
	return index.Range{}, fmt.Errorf("no eStargz footer")
}

// subfield is the head of a subfield of the extra field.
func subfield(bytes int) string { return "SG" + string(rune(bytes)) + "\x00" }

// extra returns what follows prefix in the extra field if that has the right length, and where in tail the footer begins.
func extra(tail []byte, prefix string, bytesAfter int) (field []byte, at int, ok bool) {
	const ending = 5 + 8
	length := len(prefix) + bytesAfter
	at = len(tail) - extraAt - length - ending
	if at < 0 {
		return nil, 0, false
	}
	footer := tail[at:]
	field, ok = bytes.CutPrefix(footer[extraAt:extraAt+length], []byte(prefix))
	ok = ok && bytes.HasPrefix(footer, []byte{0x1f, 0x8b, 8, 4}) && int(binary.LittleEndian.Uint16(footer[10:])) == length
	return field, at, ok
}
