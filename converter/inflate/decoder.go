package inflate

import (
	"errors"
	"fmt"
)

// WindowBytes is how far back a DEFLATE stream may refer.
const WindowBytes = 32 << 10

// ErrCorrupt is wrapped by errors about streams that are not DEFLATE or gzip.
var ErrCorrupt = errors.New("corrupt deflate stream")

// state says what comes next in the stream.
type state uint8

const (
	atBlock state = iota // a block header
	inStored
	inCodes
	atEnd // the final block is over
)

// decoder decodes one raw DEFLATE stream (RFC 1951) into buffers that the caller provides.
type decoder struct {
	in *input

	state  state
	final  bool
	stored int // bytes left of a stored block

	// A match that did not fit the buffer.
	copyLength, copyDistance int

	literals  [literalEntries]uint32
	distances [distanceEntries]uint32
	lengths   [numLiterals + numDistances]uint8
	fixed     bool // the tables are those of the fixed code
}

func (d *decoder) reset(in *input) {
	d.in, d.state, d.final, d.copyLength = in, atBlock, false, 0
}

// decode fills buf from at on and returns up to where it did; the bytes from low to at are the output that came before, as far
// back as the stream may refer. It returns early, with atBlock, at the end of each block, and with atEnd at the end of the
// stream; otherwise buf is full or there is an error.
func (d *decoder) decode(buf []byte, low, at int) (int, error) {
	if d.state == atBlock {
		if err := d.blockHeader(); err != nil {
			return at, err
		}
	}
	var err error
	if d.state == inStored {
		at, err = d.copyStored(buf, at)
	} else {
		at, err = d.decodeCodes(buf, low, at)
	}
	if err != nil || d.state != atBlock {
		return at, err
	}
	if d.final {
		d.state = atEnd
	}
	return at, nil
}

// blockHeader reads RFC 1951, 3.2.3.
func (d *decoder) blockHeader() error {
	header, err := d.in.take(3)
	if err != nil {
		return err
	}
	d.final = header&1 != 0
	switch header >> 1 {
	case 0:
		return d.storedHeader()
	case 1:
		d.fixedTables()
	case 2:
		if err := d.dynamicTables(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: block type 3", ErrCorrupt)
	}
	d.state = inCodes
	return nil
}

func (d *decoder) storedHeader() error {
	d.in.alignToByte()
	n, err := d.in.take(16)
	if err != nil {
		return err
	}
	complement, err := d.in.take(16)
	if err != nil {
		return err
	}
	if n != ^complement&0xffff {
		return fmt.Errorf("%w: length of a stored block", ErrCorrupt)
	}
	d.stored = int(n)
	d.state = inStored
	return nil
}

func (d *decoder) copyStored(buf []byte, at int) (int, error) {
	n := min(d.stored, len(buf)-at)
	if err := d.in.readBytes(buf[at : at+n]); err != nil {
		return at, err
	}
	if d.stored -= n; d.stored == 0 {
		d.state = atBlock
	}
	return at + n, nil
}

// fixedTables sets the tables of RFC 1951, 3.2.6.
func (d *decoder) fixedTables() {
	if d.fixed {
		return
	}
	for i := range numLiterals {
		switch {
		case i < 144 || i >= 280:
			d.lengths[i] = 8
		case i < 256:
			d.lengths[i] = 9
		default:
			d.lengths[i] = 7
		}
	}
	for i := range numDistances {
		d.lengths[numLiterals+i] = 5
	}
	buildTable(d.literals[:], literalBits, d.lengths[:numLiterals], literalMeaning[:])
	buildTable(d.distances[:], distanceBits, d.lengths[numLiterals:], distanceMeaning[:])
	d.fixed = true
}

// codeOrder is the order in which the lengths of the code for code lengths are sent.
var codeOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// codeMeaning are the entries of the code for code lengths: the symbol in the place of a literal.
var codeMeaning = func() (m [19]uint32) {
	for i := range m {
		m[i] = uint32(i) << 16
	}
	return m
}()

// codeBits indexes the table of the code for code lengths; its codes are not longer.
const codeBits = 7

// dynamicTables reads RFC 1951, 3.2.7.
func (d *decoder) dynamicTables() error {
	header, err := d.in.take(14)
	if err != nil {
		return err
	}
	literals, distances, codes := int(header&31)+257, int(header>>5&31)+1, int(header>>10)+4
	if literals > 286 || distances > 30 {
		return fmt.Errorf("%w: %d literal and %d distance codes", ErrCorrupt, literals, distances)
	}
	var codeLengths [19]uint8
	for _, symbol := range codeOrder[:codes] {
		n, err := d.in.take(3)
		if err != nil {
			return err
		}
		codeLengths[symbol] = uint8(n)
	}
	var table [1 << codeBits]uint32
	if !buildTable(table[:], codeBits, codeLengths[:], codeMeaning[:]) {
		return fmt.Errorf("%w: code for code lengths", ErrCorrupt)
	}
	d.fixed = false
	lengths := d.lengths[:literals+distances]
	if err := d.readLengths(lengths, &table); err != nil {
		return err
	}
	if !buildTable(d.literals[:], literalBits, lengths[:literals], literalMeaning[:]) ||
		!buildTable(d.distances[:], distanceBits, lengths[literals:], distanceMeaning[:]) {
		return fmt.Errorf("%w: code lengths", ErrCorrupt)
	}
	return nil
}

// readLengths reads the code lengths, which are themselves coded.
func (d *decoder) readLengths(lengths []uint8, table *[1 << codeBits]uint32) error {
	for i := 0; i < len(lengths); {
		e, err := d.in.symbol(table[:], codeBits)
		if err != nil {
			return err
		}
		symbol := e >> 16
		if symbol < 16 {
			lengths[i] = uint8(symbol)
			i++
			continue
		}
		var value uint8
		base, extra := 3, uint(2)
		switch symbol {
		case 16:
			if i == 0 {
				return fmt.Errorf("%w: no code length to repeat", ErrCorrupt)
			}
			value = lengths[i-1]
		case 17:
			extra = 3
		default:
			base, extra = 11, 7
		}
		n, err := d.in.take(extra)
		if err != nil {
			return err
		}
		repeat := base + int(n)
		if repeat > len(lengths)-i {
			return fmt.Errorf("%w: too many code lengths", ErrCorrupt)
		}
		for range repeat {
			lengths[i] = value
			i++
		}
	}
	return nil
}

const (
	// copyBytes is what the fast loop copies of a match at a time.
	copyBytes = 32
	// fastOutput is how much room one round of the fast loop needs: three literals, or two and a match whose last copy may write
	// too far.
	fastOutput = 2 + 258 + copyBytes
	// fastInput is how much input it needs: two loads of 8 bytes, at most 7 bytes apart.
	fastInput = 16
)

// decodeCodes decodes until the block ends or buf is full.
func (d *decoder) decodeCodes(buf []byte, low, at int) (int, error) {
	for {
		if d.copyLength > 0 {
			if at = d.copyMatch(buf, at); d.copyLength > 0 {
				return at, nil
			}
		}
		if len(buf)-at >= fastOutput && d.in.have(fastInput) {
			var err error
			if at, err = d.fast(buf, low, at); err != nil || d.state != inCodes {
				return at, err
			}
			if d.copyLength > 0 {
				continue
			}
		}
		if at == len(buf) {
			return at, nil
		}
		var err error
		if at, err = d.step(buf, low, at); err != nil || d.state != inCodes {
			return at, err
		}
	}
}

// copyMatch copies what fits of the pending match.
func (d *decoder) copyMatch(buf []byte, at int) int {
	n := min(d.copyLength, len(buf)-at)
	for range n {
		buf[at] = buf[at-d.copyDistance]
		at++
	}
	d.copyLength -= n
	return at
}

// step decodes one symbol, near the end of the input or of the buffer, which has room for a byte.
func (d *decoder) step(buf []byte, low, at int) (int, error) {
	e, err := d.in.symbol(d.literals[:], literalBits)
	if err != nil {
		return at, err
	}
	switch {
	case e&entryLiteral != 0:
		buf[at] = byte(e >> 16)
		return at + 1, nil
	case e&entryEnd != 0:
		d.state = atBlock
		return at, nil
	}
	length, err := d.in.value(e)
	if err != nil {
		return at, err
	}
	if e, err = d.in.symbol(d.distances[:], distanceBits); err != nil {
		return at, err
	}
	distance, err := d.in.value(e)
	if err != nil {
		return at, err
	}
	if distance > at-low {
		return at, errDistance(distance)
	}
	d.copyLength, d.copyDistance = length, distance
	return at, nil
}

func errDistance(distance int) error {
	return fmt.Errorf("%w: distance %d reaches before the beginning", ErrCorrupt, distance)
}

var errSymbol = fmt.Errorf("%w: unused code", ErrCorrupt)
