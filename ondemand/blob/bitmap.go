package blob

import (
	"math/bits"
	"sync/atomic"
)

// bitmap is a set of extents that is read without a lock. Only one goroutine at a time may change it.
type bitmap []atomic.Uint64

func newBitmap(n int) bitmap { return make(bitmap, (n+63)/64) }

func (b bitmap) has(i int) bool { return b[i/64].Load()>>(i%64)&1 != 0 }

func (b bitmap) set(i int) { b[i/64].Or(1 << (i % 64)) }

func (b bitmap) clear(i int) { b[i/64].And(^(uint64(1) << (i % 64))) }

func (b bitmap) copyFrom(from bitmap) {
	for w := range b {
		b[w].Store(from[w].Load())
	}
}

// nextClear returns the first number from first up to, and without, end that is not in the set, or end.
func (b bitmap) nextClear(first, end int) int {
	for i := first; i < end; i = i/64*64 + 64 {
		if absent := ^b[i/64].Load() >> (i % 64); absent != 0 {
			return min(i+bits.TrailingZeros64(absent), end)
		}
	}
	return end
}
