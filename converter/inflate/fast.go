package inflate

// fast is the loop that nearly all time is spent in. It decodes while buf has room for the longest that one round may write
// and the input has what one round may load, so that neither needs to be asked for in between.
//
// The tables' entries are explained in tables.go. After each load there are at least 56 bits: enough for two literals found in the
// first table and a length with its extra bits (11+11+15+5), and after another load for a distance (15+13).
func (d *decoder) fast(buf []byte, low, at int) (int, error) {
	in := d.in
	src, ip := in.buf, in.at
	bits, count := in.bits, in.count
	literals, distances := &d.literals, &d.distances
	lastIn, lastOut := len(src)-fastInput, len(buf)-fastOutput
	var err error
	for ip <= lastIn && at <= lastOut {
		bits |= load64(src, ip) << (count & 63)
		ip += int((63 - count) >> 3 & 7)
		count |= 56

		e := literals[bits&(1<<literalBits-1)]
		if e&entryLiteral != 0 {
			bits >>= e & 63
			count -= uint(e & entryBits)
			buf[at] = byte(e >> 16)
			at++
			e = literals[bits&(1<<literalBits-1)]
			if e&entryLiteral != 0 {
				bits >>= e & 63
				count -= uint(e & entryBits)
				buf[at] = byte(e >> 16)
				at++
				e = literals[bits&(1<<literalBits-1)]
				if e&entryLiteral != 0 {
					bits >>= e & 63
					count -= uint(e & entryBits)
					buf[at] = byte(e >> 16)
					at++
					continue
				}
			}
		}
		if e&entrySpecial != 0 {
			if e&entryLink != 0 {
				bits >>= literalBits
				count -= literalBits
				e = literals[e>>16+uint32(bits)&(1<<(e>>8&15)-1)]
				if e&entryLiteral != 0 {
					bits >>= e & 63
					count -= uint(e & entryBits)
					buf[at] = byte(e >> 16)
					at++
					continue
				}
			}
			if e&entryEnd != 0 {
				bits >>= e & 63
				count -= uint(e & entryBits)
				d.state = atBlock
				break
			}
			if e&entrySpecial != 0 {
				err = errSymbol
				break
			}
		}
		extra := uint32(bits) & (1<<(e&31) - 1) >> (e >> 8 & 31)
		bits >>= e & 63
		count -= uint(e & entryBits)
		length := int(e>>16 + extra)

		bits |= load64(src, ip) << (count & 63)
		ip += int((63 - count) >> 3 & 7)
		count |= 56

		e = distances[bits&(1<<distanceBits-1)]
		if e&entrySpecial != 0 {
			if e&entryLink != 0 {
				bits >>= distanceBits
				count -= distanceBits
				e = distances[e>>16+uint32(bits)&(1<<(e>>8&15)-1)]
			}
			if e&entrySpecial != 0 {
				err = errSymbol
				break
			}
		}
		extra = uint32(bits) & (1<<(e&31) - 1) >> (e >> 8 & 31)
		bits >>= e & 63
		count -= uint(e & entryBits)
		distance := int(e>>16 + extra)

		from := at - distance
		if from < low {
			err = errDistance(distance)
			break
		}
		end := at + length
		switch {
		case distance >= 8:
			for {
				store64(buf, at, load64(buf, from))
				store64(buf, at+8, load64(buf, from+8))
				at += 16
				from += 16
				if at >= end {
					break
				}
			}
		case distance == 1:
			v := uint64(buf[from]) * 0x0101010101010101
			for ; at < end; at += 8 {
				store64(buf, at, v)
			}
		default:
			for ; at < end; at++ {
				buf[at] = buf[from]
				from++
			}
		}
		at = end
	}
	// Whole bytes go back: only less than a byte may stay behind when the input moves its buffer.
	in.at, in.bits, in.count = ip-int(count>>3), bits&(1<<(count&7)-1), count&7
	return at, err
}
