package tarstream

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

// Reader reads an archive. It is not safe for concurrent use.
type Reader struct {
	src    source
	limits Limits
	err    error // what ended the reading, for all later calls

	hdr    Header
	name   string // of the current entry as far as it is known
	start  int64  // offset of the current entry
	stored int64  // stored bytes of the current entry not read yet
	pad    int64  // padding after them

	blk     block
	meta    []byte // payload of the last PAX header, to which attribute values refer
	scratch []byte // payload of a GNU header, or a name being put together
	pax     paxRecords
	global  paxAttributes
	local   bool // the current entry has a PAX header of its own
	long    longNames
	names   interned
}

// longNames are the GNU headers before an entry.
type longNames struct {
	name, link string
}

// NewReader returns a Reader of the archive in r.
func NewReader(r io.Reader, limits Limits) *Reader {
	return &Reader{
		src:    newSource(r),
		limits: limits.withDefaults(),
		global: noAttributes,
	}
}

// Next skips what is left of the current entry and returns the next one. At the end of the archive the error is io.EOF. After an
// error every call returns the same one.
func (r *Reader) Next() (*Header, error) {
	if r.err == nil {
		r.err = r.next()
	}
	if r.err != nil {
		return nil, r.err
	}
	return &r.hdr, nil
}

// Read reads stored data of the current entry: of a sparse file the segments one after the other, without holes. The error is io.EOF at
// the end of the data, and wraps io.ErrUnexpectedEOF if the stream ends before.
func (r *Reader) Read(p []byte) (int, error) {
	if r.stored == 0 {
		return 0, io.EOF
	}
	if r.err != nil {
		return 0, r.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if int64(len(p)) > r.stored {
		p = p[:r.stored]
	}
	n, err := r.src.read(p)
	r.stored -= int64(n)
	if err != nil {
		r.err = r.truncated(err, "data")
	}
	return n, r.err
}

// Stored returns how many stored bytes of the current entry were not read yet.
func (r *Reader) Stored() int64 { return r.stored }

// Offset returns the position in the stream up to which the reader has consumed it.
func (r *Reader) Offset() int64 { return r.src.off }

// Current returns name and offset of the entry that the reader is at, for messages about errors. The name is empty if an error came
// before it was known.
func (r *Reader) Current() (name string, offset int64) { return r.name, r.start }

func (r *Reader) next() error {
	if err := r.finishEntry(); err != nil {
		return err
	}
	r.begin()
	extended := false // some header of the entry to come was read
	for {
		if !extended {
			r.start = r.src.off
		}
		err := r.readBlock()
		if err == io.EOF && extended {
			return fmt.Errorf("stream ends at %d after an extension header: %w", r.src.off, io.ErrUnexpectedEOF)
		}
		if err != nil {
			return err
		}
		switch t := r.blk[typeAt]; t {
		case 'x', 'X': // 'X' is how Solaris called it before POSIX
			err, extended = r.readLocal(), true
		case 'L', 'K':
			err, extended = r.readLong(t), true
		case 'g':
			err = r.readGlobal()
		case 'V':
			if extended {
				return fmt.Errorf("%w: extension header before a volume label", ErrHeader)
			}
			err = r.skipPayload()
		default:
			return r.readEntry()
		}
		if err != nil {
			return err
		}
	}
}

// finishEntry skips the rest of the current entry. The padding after it may be missing at the end of the stream.
func (r *Reader) finishEntry() error {
	before := r.src.off
	err := r.src.skip(r.stored)
	r.stored -= r.src.off - before
	if err != nil {
		return r.truncated(err, "data")
	}
	err = r.src.skip(r.pad)
	r.pad = 0
	if err != nil && err != io.EOF {
		return r.truncated(err, "padding")
	}
	return nil
}

// begin forgets the previous entry.
func (r *Reader) begin() {
	r.name = ""
	r.long = longNames{}
	r.local = false
	r.pax.reset(r.global)
}

// readBlock reads a header block into r.blk. The error is io.EOF at the end of the archive.
func (r *Reader) readBlock() error {
	b, err := r.src.block()
	if err == io.EOF {
		return io.EOF
	}
	if err != nil {
		return r.truncated(err, "header")
	}
	r.blk = block(b)
	if r.blk == zeroBlock {
		return r.readEndMark()
	}
	if !r.blk.validSum() {
		return fmt.Errorf("%w: wrong checksum", ErrHeader)
	}
	return nil
}

// readEndMark reads what follows a zero block, and returns io.EOF if it is the end of the archive.
func (r *Reader) readEndMark() error {
	b, err := r.src.block()
	switch {
	case err == io.EOF:
		return io.EOF
	case err != nil:
		return r.truncated(err, "end mark")
	case block(b) == zeroBlock:
		return io.EOF
	default:
		return fmt.Errorf("%w: data after a single zero block", ErrHeader)
	}
}

// truncated says where the stream ended, and leaves other errors of the stream alone.
func (r *Reader) truncated(err error, inside string) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("stream ends at %d inside the %s: %w", r.src.off, inside, err)
	}
	return fmt.Errorf("read tar stream at %d: %w", r.src.off, err)
}

// payloadSize returns the size field of an extension header.
func (r *Reader) payloadSize() (int64, error) {
	size, err := r.blk.number("size", sizeAt, longLen)
	if err != nil {
		return 0, err
	}
	if size < 0 {
		return 0, fmt.Errorf("%w: size %d", ErrHeader, size)
	}
	return size, nil
}

// readPayload reads the contents of an extension header into dst, which grows only as data arrive.
func (r *Reader) readPayload(dst []byte) ([]byte, error) {
	size, err := r.payloadSize()
	if err != nil {
		return nil, err
	}
	if size > r.limits.MetadataBytes {
		return nil, fmt.Errorf("%w: extension header of %d bytes, at most %d are allowed", ErrLimit, size, r.limits.MetadataBytes)
	}
	dst = dst[:0]
	for left := size; left > 0; {
		if len(dst) == cap(dst) {
			dst = append(dst, make([]byte, min(left, bufferBytes))...)[:len(dst)]
		}
		n, err := r.src.read(dst[len(dst):min(int64(cap(dst)), int64(len(dst))+left)])
		if err != nil {
			return nil, r.truncated(err, "extension header")
		}
		dst = dst[:len(dst)+n]
		left -= int64(n)
	}
	if err := r.src.skip(padding(size)); err != nil {
		return nil, r.truncated(err, "extension header")
	}
	return dst, nil
}

func (r *Reader) skipPayload() error {
	size, err := r.payloadSize()
	if err != nil {
		return err
	}
	if err := r.src.skip(size); err != nil {
		return r.truncated(err, "volume label")
	}
	if err := r.src.skip(padding(size)); err != nil && err != io.EOF {
		return r.truncated(err, "volume label")
	}
	return nil
}

// readLong reads a GNU long name or long link.
func (r *Reader) readLong(t byte) error {
	b, err := r.readPayload(r.scratch)
	if err != nil {
		return err
	}
	r.scratch = b
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	s := string(b)
	if strings.IndexByte(s, 0) >= 0 {
		return fmt.Errorf("%w: NUL in the GNU long name %q", ErrHeader, clip(b))
	}
	if t == 'L' {
		r.long.name, r.name = s, s
	} else {
		r.long.link = s
	}
	return nil
}

// padding is the number of bytes that fill up the last block of size bytes.
func padding(size int64) int64 { return -size & (blockBytes - 1) }

// checkSize checks a size against what the arithmetic and the limits allow.
func (r *Reader) checkSize(size int64) error {
	if size < 0 {
		return fmt.Errorf("%w: size %d", ErrHeader, size)
	}
	if size > r.limits.FileBytes || size > math.MaxInt64-blockBytes {
		return fmt.Errorf("%w: file of %d bytes, at most %d are allowed", ErrLimit, size, r.limits.FileBytes)
	}
	return nil
}
