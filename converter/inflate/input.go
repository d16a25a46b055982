package inflate

import "io"

// input is the compressed stream with a bit buffer.
type input struct {
	src io.Reader
	err error // of src, once it has ended

	buf    []byte // unread bytes are buf[at:]
	at     int
	start  int64 // position of buf[0] in the stream
	memory []byte

	// bits holds the next count bits, lowest first, and zeros above them. Between calls there are fewer than 8: the bytes that a
	// read of whole bytes or the fast loop goes on from are all in buf.
	bits  uint64
	count uint
}

const inputBytes = 256 << 10

func newInput(src io.Reader, start int64) *input {
	return &input{src: src, start: start, memory: make([]byte, inputBytes)}
}

// have makes n unread bytes available, and returns whether there are that many. n is small.
func (in *input) have(n int) bool {
	for len(in.buf)-in.at < n && in.err == nil {
		in.start += int64(in.at)
		kept := copy(in.memory, in.buf[in.at:])
		m, err := in.src.Read(in.memory[kept:])
		in.buf, in.at, in.err = in.memory[:kept+m], 0, err
	}
	return len(in.buf)-in.at >= n
}

// load makes n bits available in the bit buffer; n is at most 32. It loads no byte more than that takes.
func (in *input) load(n uint) error {
	for in.count < n {
		if !in.have(1) {
			return in.ended()
		}
		in.bits |= uint64(in.buf[in.at]) << in.count
		in.at++
		in.count += 8
	}
	return nil
}

// ended is the error of an input that ends inside of something.
func (in *input) ended() error {
	if in.err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return in.err
}

// take returns the next n bits; n is at most 32.
func (in *input) take(n uint) (uint32, error) {
	if err := in.load(n); err != nil {
		return 0, err
	}
	v := uint32(in.bits & (1<<n - 1))
	in.bits >>= n
	in.count -= n
	return v, nil
}

// symbol reads a code and returns its entry. The extra bits of a length or distance are not taken.
func (in *input) symbol(table []uint32, indexBits uint) (uint32, error) {
	e := uint32(0)
	for {
		// A code may be shorter than the index, and the stream may end right behind it.
		e = table[in.bits&(1<<indexBits-1)]
		n := uint(e >> 8 & 31)
		if e&(entrySpecial|entryLink) == entrySpecial|entryLink {
			first := uint(e & entryBits)
			sub := in.bits >> first & (1<<(e>>8&15) - 1)
			e = table[uint(e>>16)+uint(sub)]
			n = first + uint(e>>8&31)
		}
		known := in.count
		if n <= known && (e&entrySpecial == 0 || e&entryEnd != 0) {
			in.bits >>= n
			in.count -= n
			return e, nil
		}
		if known >= maxCodeBits {
			return 0, errSymbol
		}
		if err := in.load(known + 1); err != nil {
			return 0, err
		}
	}
}

// value takes the extra bits of an entry and returns the length or distance.
func (in *input) value(e uint32) (int, error) {
	extra, err := in.take(uint(e&entryBits - e>>8&31))
	return int(e>>16) + int(extra), err
}

// alignToByte skips to the next byte boundary.
func (in *input) alignToByte() {
	n := in.count & 7
	in.bits >>= n
	in.count -= n
}

// readBytes fills b from a byte boundary.
func (in *input) readBytes(b []byte) error {
	for len(b) > 0 {
		if in.at == len(in.buf) && !in.have(1) {
			return in.ended()
		}
		n := copy(b, in.buf[in.at:])
		in.at += n
		b = b[n:]
	}
	return nil
}

// bitOffset is the position in the stream, in bits.
func (in *input) bitOffset() int64 {
	return (in.start+int64(in.at))*8 - int64(in.count)
}
