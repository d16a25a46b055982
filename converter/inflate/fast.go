//go:build amd64 || arm64

package inflate

import "unsafe"

// This file is the only one that reads and writes memory without bounds checks. They cost a quarter of the speed: not so much the
// comparisons as the registers that the lengths of slices take from a loop with a dozen live values.
//
// What keeps the accesses within in.buf and buf[low:]:
//
//   - A round of the loop begins with ip <= lastIn and at <= lastOut. It loads at most twice, 8 bytes each, and looks at ip again
//     before the second time; it writes at most fastOutput bytes. Both are checked before each round, by the caller before the first.
//   - A match begins at most at bytes back.
//   - Indexes into the tables are checked by the compiler.

// fast decodes while buf has room for the longest that one round may write and the input has what one round may load.
//
// The tables' entries are explained in tables.go. After a load there are at least 56 bits: enough for two literals found in the first
// table and a length with its extra bits (11+11+15+5); a distance (15+13) may need another load. Of count only the lowest 6 bits
// mean something before the end: subtracting whole entries saves a mask each time.
func (d *decoder) fast(buf []byte, low, at int) (int, error) {
	in := d.in
	src := unsafe.Pointer(unsafe.SliceData(in.buf))
	dst := unsafe.Pointer(unsafe.SliceData(buf[low:]))
	lastIn, lastOut := len(in.buf)-fastInput, len(buf)-low-fastOutput
	at -= low
	ip := in.at
	bits, count := in.bits, in.count
	var err error

	bits |= load64(src, ip) << (count & 63)
	ip += int((63 - count) >> 3 & 7)
	count |= 56
	e := d.literals[bits&(1<<literalBits-1)]
	for {
		if e&entryLiteral != 0 {
			bits >>= e & 63
			count -= uint(e)
			store8(dst, at, byte(e>>16))
			at++
			e = d.literals[bits&(1<<literalBits-1)]
			if e&entryLiteral != 0 {
				bits >>= e & 63
				count -= uint(e)
				store8(dst, at, byte(e>>16))
				at++
				e = d.literals[bits&(1<<literalBits-1)]
				if e&entryLiteral != 0 {
					bits >>= e & 63
					count -= uint(e)
					store8(dst, at, byte(e>>16))
					at++
					goto next
				}
			}
		}
		if e&entrySpecial != 0 {
			if e&entryLink != 0 {
				bits >>= literalBits
				count -= literalBits
				e = d.literals[e>>16+uint32(bits)&(1<<(e>>8&15)-1)]
				if e&entryLiteral != 0 {
					bits >>= e & 63
					count -= uint(e)
					store8(dst, at, byte(e>>16))
					at++
					goto next
				}
			}
			if e&entryEnd != 0 {
				bits >>= e & 63
				count -= uint(e)
				d.state = atBlock
				break
			}
			if e&entrySpecial != 0 {
				err = errSymbol
				break
			}
		}
		{
			length := int(e>>16 + uint32(bits)&(1<<(e&31)-1)>>(e>>8&31))
			bits >>= e & 63
			count -= uint(e)

			if count&63 < maxCodeBits+13 {
				bits |= load64(src, ip) << (count & 63)
				ip += int((63 - count) >> 3 & 7)
				count |= 56
			}
			e = d.distances[bits&(1<<distanceBits-1)]
			if e&entrySpecial != 0 {
				if e&entryLink != 0 {
					bits >>= distanceBits
					count -= distanceBits
					e = d.distances[e>>16+uint32(bits)&(1<<(e>>8&15)-1)]
				}
				if e&entrySpecial != 0 {
					err = errSymbol
					break
				}
			}
			distance := int(e>>16 + uint32(bits)&(1<<(e&31)-1)>>(e>>8&31))
			bits >>= e & 63
			count -= uint(e)

			if distance > at {
				err = errDistance(distance)
				break
			}
			if ip > lastIn {
				d.copyLength, d.copyDistance = length, distance
				break
			}
			// The next symbol is looked up before the match is copied: how long the copy goes on is often mispredicted, and
			// what came before that is not lost.
			bits |= load64(src, ip) << (count & 63)
			ip += int((63 - count) >> 3 & 7)
			count |= 56
			e = d.literals[bits&(1<<literalBits-1)]
			to := unsafe.Add(dst, at)
			at += length
			if distance < 8 {
				copyNear(to, distance, length)
			} else {
				// One store after the other: with a distance below copyBytes a load needs what an earlier store has written.
				from := unsafe.Add(to, -distance)
				for {
					store64(to, 0, load64(from, 0))
					store64(to, 8, load64(from, 8))
					store64(to, 16, load64(from, 16))
					store64(to, 24, load64(from, 24))
					if length -= copyBytes; length <= 0 {
						break
					}
					to, from = unsafe.Add(to, copyBytes), unsafe.Add(from, copyBytes)
				}
			}
			if at > lastOut {
				break
			}
			continue
		}
	next:
		if ip > lastIn || at > lastOut {
			break
		}
		bits |= load64(src, ip) << (count & 63)
		ip += int((63 - count) >> 3 & 7)
		count |= 56
		e = d.literals[bits&(1<<literalBits-1)]
	}
	// Whole bytes go back: only less than a byte may stay behind when the input moves its buffer.
	count &= 63
	in.at, in.bits, in.count = ip-int(count>>3), bits&(1<<(count&7)-1), count&7
	return low + at, err
}

// copyNear copies a match from less than 8 bytes before.
func copyNear(to unsafe.Pointer, distance, length int) {
	from := unsafe.Add(to, -distance)
	if distance == 1 {
		v := uint64(load8(from, 0)) * 0x0101010101010101
		for i := 0; i < length; i += 8 {
			store64(to, i, v)
		}
		return
	}
	for i := range length {
		store8(to, i, load8(from, i))
	}
}

// Both machines of this file are little endian, as DEFLATE is, and do not mind where an access begins.
func load8(p unsafe.Pointer, i int) byte        { return *(*byte)(unsafe.Add(p, i)) }
func load64(p unsafe.Pointer, i int) uint64     { return *(*uint64)(unsafe.Add(p, i)) }
func store8(p unsafe.Pointer, i int, v byte)    { *(*byte)(unsafe.Add(p, i)) = v }
func store64(p unsafe.Pointer, i int, v uint64) { *(*uint64)(unsafe.Add(p, i)) = v }
