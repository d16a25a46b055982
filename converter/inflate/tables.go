package inflate

import "math/bits"

// A decoding table is indexed by the next bits of the stream, first bit lowest, and says what they mean. Codes longer than the
// index lead to a second table, which lies behind the first one. An entry:
//
//	bits  0..5   how many bits to take: of the code, with the extra bits of a length or distance
//	      8..12  how many of those are the code; in a link, how many bits index the second table
//	     13      end of block
//	     14      link to a second table
//	     15      look at bits 13 and 14; if neither is set there is no such code
//	     16..30  literal, base of the length or distance, or index of the second table
//	     31      literal
const (
	entryEnd     = 1 << 13
	entryLink    = 1 << 14
	entrySpecial = 1 << 15
	entryLiteral = 1 << 31

	entryBits = 1<<6 - 1
)

const (
	maxCodeBits = 15

	literalBits = 11
	// The largest table that a complete code of 288 symbols and 15 bits can need with this index is known from zlib's
	// examples/enough.c.
	literalEntries = 2342

	distanceBits    = 8
	distanceEntries = 402

	numLiterals  = 288 // 286 and 287 take part in the fixed code and mean nothing
	numDistances = 32  // as do 30 and 31
	endOfBlock   = 256
)

// literalMeaning and distanceMeaning are the entries of the symbols without the length of their codes. RFC 1951, 3.2.5.
var literalMeaning, distanceMeaning = func() (l [numLiterals]uint32, d [numDistances]uint32) {
	for i := range endOfBlock {
		l[i] = entryLiteral | uint32(i)<<16
	}
	l[endOfBlock] = entrySpecial | entryEnd
	base := uint32(3)
	for i := 257; i < 285; i++ {
		extra := uint32(max(0, (i-261)/4))
		l[i] = base<<16 | extra
		base += 1 << extra
	}
	l[285] = 258 << 16
	l[286], l[287] = entrySpecial, entrySpecial
	base = 1
	for i := range 30 {
		extra := uint32(max(0, i/2-1))
		d[i] = base<<16 | extra
		base += 1 << extra
	}
	d[30], d[31] = entrySpecial, entrySpecial
	return l, d
}()

// withCode adds a code of n bits to the meaning of a symbol.
func withCode(meaning uint32, n int) uint32 {
	return meaning + uint32(n) | uint32(n)<<8
}

// buildTable makes the table for a canonical code (RFC 1951, 3.2.2) with the given code lengths, 0 for symbols that do not
// occur. Like zlib and the standard library it takes a code only if it is complete, or has a single code of one bit, or is
// empty. It returns whether that is so.
func buildTable(table []uint32, indexBits int, lengths []uint8, meaning []uint32) bool {
	var count [maxCodeBits + 1]int
	for _, n := range lengths {
		count[n]++
	}
	count[0] = 0
	longest := maxCodeBits
	for longest > 0 && count[longest] == 0 {
		longest--
	}
	var next [maxCodeBits + 1]uint32 // the next code of each length
	code := uint32(0)
	for n := 1; n <= longest; n++ {
		code <<= 1
		next[n] = code
		code += uint32(count[n])
	}
	if longest > 0 && code != 1<<longest && (longest != 1 || code != 1) {
		return false
	}
	if code != 1<<longest || longest == 0 {
		for i := range 1 << indexBits {
			table[i] = entrySpecial
		}
	}
	linkTables(table, indexBits, &count, next)
	fillTable(table, indexBits, lengths, meaning, &next)
	return true
}

// fillTable writes the entries of all symbols. next holds the first code of each length.
func fillTable(table []uint32, indexBits int, lengths []uint8, meaning []uint32, next *[maxCodeBits + 1]uint32) {
	for symbol, length := range lengths {
		n := int(length)
		if n == 0 {
			continue
		}
		code := int(bits.Reverse16(uint16(next[n])) >> (16 - n))
		next[n]++
		if n <= indexBits {
			e := withCode(meaning[symbol], n)
			for i := code; i < 1<<indexBits; i += 1 << n {
				table[i] = e
			}
			continue
		}
		link := table[code&(1<<indexBits-1)]
		start, size := int(link>>16), 1<<(link>>8&15)
		e := withCode(meaning[symbol], n-indexBits)
		for i := code >> indexBits; i < size; i += 1 << (n - indexBits) {
			table[start+i] = e
		}
	}
}

// linkTables reserves a second table for each index that longer codes begin with, as large as the longest of them needs. In
// canonical order codes with a common beginning follow each other, and the longest comes last.
func linkTables(table []uint32, indexBits int, count *[maxCodeBits + 1]int, next [maxCodeBits + 1]uint32) {
	free := 1 << indexBits
	begin, size := -1, 0
	link := func() {
		if begin >= 0 {
			i := bits.Reverse16(uint16(begin)) >> (16 - indexBits)
			table[i] = entrySpecial | entryLink | uint32(free)<<16 | uint32(size)<<8 | uint32(indexBits)
			free += 1 << size
		}
	}
	for n := indexBits + 1; n <= maxCodeBits; n++ {
		for range count[n] {
			if b := int(next[n] >> (n - indexBits)); b != begin {
				link()
				begin = b
			}
			size = n - indexBits
			next[n]++
		}
	}
	link()
}
