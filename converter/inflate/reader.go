// Package inflate decodes gzip streams (RFC 1952, RFC 1951) on 64-bit machines faster than the libraries there are, and can stop
// and resume in the middle of a stream.
//
// Output goes straight into buffers of the caller, which keep the last 32 KiB as the window, so nothing is copied:
//
//	buf := make([]byte, inflate.WindowBytes+1<<20)
//	at := 0
//	for {
//		n, err := r.Fill(buf, at) // buf[at:n] is new
//		...
//		at = copy(buf, buf[n-min(n, inflate.WindowBytes):n])
//	}
//
// All members of a stream are decoded, and each one's checksum and length are compared. fast.go, the inner loop on amd64 and arm64,
// checks its accesses by itself, once for many; everything else leaves that to the compiler.
package inflate

import (
	"fmt"
	"hash/crc32"
	"io"
)

// Checkpoint is a place where decoding can resume: the boundary between two DEFLATE blocks.
type Checkpoint struct {
	// In is the position in the compressed stream in bits, Out that in the decompressed one in bytes.
	In, Out int64
	// Window is the output before Out, as far back as the stream may refer: at most WindowBytes.
	Window []byte
}

// Reader decodes one stream. Not safe for concurrent use. The zero value is for Reset.
type Reader struct {
	in      *input
	decoder decoder
	phase   phase
	err     error

	out       int64 // bytes decoded of the whole stream
	memberOut int64 // bytes of the current member that a match may refer to
	memberLen uint32
	sum       uint32
	unchecked bool // decoding began inside of the current member, so its checksum is not known

	spacing    int64
	checkpoint func(Checkpoint)
	last       int64 // Out of the last checkpoint

	own      []byte // buffer of Read: window, then output
	from, to int
}

// phase says which part of a member comes next.
type phase uint8

const (
	atMember phase = iota
	inMember
	atTrailer
)

// NewReader returns a Reader of the gzip stream src.
func NewReader(src io.Reader) *Reader {
	return &Reader{in: newInput(src, 0)}
}

// Reset makes r a Reader of a whole gzip stream in memory, which is not copied. Buffers that r has stay.
func (r *Reader) Reset(stream []byte) {
	if r.in == nil {
		r.in = new(input)
	}
	*r.in = input{buf: stream, memory: r.in.memory, err: io.EOF}
	r.restart()
}

// ResetReader makes r a Reader of the gzip stream src. Buffers that r has stay.
func (r *Reader) ResetReader(src io.Reader) {
	if r.in == nil || r.in.memory == nil {
		r.in = newInput(src, 0)
	}
	*r.in = input{src: src, memory: r.in.memory}
	r.restart()
}

func (r *Reader) restart() {
	r.phase, r.err, r.out, r.last, r.checkpoint, r.from, r.to = atMember, nil, 0, 0, nil, 0, 0
}

// Resume returns a Reader that goes on from c. src must begin at byte c.In/8 of the stream. The checksum of the member that c
// lies in cannot be compared; those of later ones are.
func Resume(src io.Reader, c Checkpoint) (*Reader, error) {
	r := &Reader{in: newInput(src, c.In/8), phase: inMember, unchecked: true, out: c.Out, last: c.Out}
	if _, err := r.in.take(uint(c.In % 8)); err != nil {
		return nil, err
	}
	window := c.Window[max(0, len(c.Window)-WindowBytes):]
	r.memberOut = int64(len(window))
	r.own = make([]byte, WindowBytes+readBytes)
	r.from = copy(r.own, window)
	r.to = r.from
	r.decoder.reset(r.in)
	return r, nil
}

// OnCheckpoint makes the Reader call f at block boundaries that are at least spacing bytes of output apart. The window is valid
// during the call only.
func (r *Reader) OnCheckpoint(spacing int64, f func(Checkpoint)) {
	r.spacing, r.checkpoint = spacing, f
}

// Fill decodes into buf from at on, until buf is full or the stream ends, and returns up to where it did. buf[:at] must end with
// what was decoded before: WindowBytes of it, or all if it is less. The error is io.EOF behind the last member,
// io.ErrUnexpectedEOF if the stream ends elsewhere, or wraps ErrCorrupt; what was decoded before is valid even then.
func (r *Reader) Fill(buf []byte, at int) (int, error) {
	for r.err == nil && at < len(buf) {
		switch r.phase {
		case atMember:
			r.err = r.beginMember()
		case inMember:
			at, r.err = r.body(buf, at)
		case atTrailer:
			r.err = r.trailer()
		}
	}
	if at == len(buf) {
		return at, nil
	}
	return at, r.err
}

// body decodes up to the end of a block.
func (r *Reader) body(buf []byte, at int) (int, error) {
	low := at - int(min(r.memberOut, int64(at)))
	to, err := r.decoder.decode(buf, low, at)
	r.sum = crc32.Update(r.sum, crc32.IEEETable, buf[at:to])
	r.memberLen += uint32(to - at)
	r.memberOut += int64(to - at)
	r.out += int64(to - at)
	switch {
	case err != nil:
	case r.decoder.state == atEnd:
		r.phase = atTrailer
	case r.decoder.state == atBlock && r.checkpoint != nil && r.out-r.last >= r.spacing:
		r.last = r.out
		window := buf[:to][max(low, to-WindowBytes):]
		r.checkpoint(Checkpoint{In: r.in.bitOffset(), Out: r.out, Window: window})
	}
	return to, err
}

// readBytes is how much Read decodes at a time.
const readBytes = 256 << 10

// Read implements io.Reader. Reads and calls of Fill must not be mixed.
func (r *Reader) Read(p []byte) (int, error) {
	if r.own == nil {
		r.own = make([]byte, WindowBytes+readBytes)
	}
	if r.from == r.to {
		at := r.to
		if at > WindowBytes {
			at = copy(r.own, r.own[at-WindowBytes:at])
		}
		to, err := r.Fill(r.own, at)
		r.from, r.to = at, to
		if to == at {
			return 0, err
		}
	}
	n := copy(p, r.own[r.from:r.to])
	r.from += n
	return n, nil
}

// Flags of a member's header, RFC 1952, 2.3.1.
const (
	flagHeaderSum = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4
	flagsReserved = 0xe0
)

// beginMember reads a member's header. The error is io.EOF if there is none.
func (r *Reader) beginMember() error {
	if !r.in.have(1) {
		if r.in.err == io.EOF && r.out == 0 && r.in.bitOffset() == 0 {
			return io.ErrUnexpectedEOF
		}
		return r.in.err
	}
	h := &header{in: r.in}
	if b := h.bytes(4); h.err == nil && (b[0] != 0x1f || b[1] != 0x8b || b[2] != 8) {
		return fmt.Errorf("%w: no gzip header at offset %d", ErrCorrupt, r.in.bitOffset()/8-4)
	}
	flags := h.last[3]
	h.bytes(6) // time, extra flags, system
	if flags&flagExtra != 0 {
		b := h.bytes(2)
		for range int(b[0]) | int(b[1])<<8 {
			h.bytes(1)
		}
	}
	for _, f := range []byte{flagName, flagComment} {
		for flags&f != 0 && h.bytes(1)[0] != 0 {
		}
	}
	sum := uint16(h.sum)
	if flags&flagHeaderSum != 0 {
		if b := h.bytes(2); h.err == nil && uint16(b[0])|uint16(b[1])<<8 != sum {
			return fmt.Errorf("%w: checksum of a gzip header", ErrCorrupt)
		}
	}
	if h.err == nil && flags&flagsReserved != 0 {
		return fmt.Errorf("%w: reserved flags %#x in a gzip header", ErrCorrupt, flags&flagsReserved)
	}
	r.phase, r.sum, r.memberLen, r.memberOut, r.unchecked = inMember, 0, 0, 0, false
	r.decoder.reset(r.in)
	return h.err
}

// header reads the bytes of a member's header and sums them.
type header struct {
	in   *input
	sum  uint32
	last [6]byte
	err  error
}

// bytes returns the next n bytes, zeros after an error.
func (h *header) bytes(n int) []byte {
	b := h.last[:n]
	if h.err == nil {
		h.err = h.in.readBytes(b)
	}
	if h.err != nil {
		clear(b)
	}
	h.sum = crc32.Update(h.sum, crc32.IEEETable, b)
	return b
}

// trailer compares checksum and length of a member.
func (r *Reader) trailer() error {
	r.in.alignToByte()
	sum, err := r.in.take(32)
	if err != nil {
		return err
	}
	length, err := r.in.take(32)
	if err != nil {
		return err
	}
	r.phase = atMember
	if !r.unchecked && (sum != r.sum || length != r.memberLen) {
		return fmt.Errorf("%w: member of %d bytes with checksum %08x, its trailer says %d and %08x", ErrCorrupt, r.memberLen, r.sum, length, sum)
	}
	return nil
}
