package ondemand

import (
	"math/bits"
	"sync"
)

// Buffers have a power of two of bytes. Larger ones than the largest are rare, and not kept.
const (
	smallestBuffer = 16 // 64 KiB
	largestBuffer  = 22 // 4 MiB
)

// buffers are those that are not in use. The garbage collector takes what stays here.
type buffers [largestBuffer - smallestBuffer + 1]sync.Pool

func bufferClass(n int) int { return max(bits.Len(uint(max(n, 1)-1)), smallestBuffer) - smallestBuffer }

// get returns a buffer of n bytes, with anything in it.
func (b *buffers) get(n int) []byte {
	c := bufferClass(n)
	if c >= len(b) {
		return make([]byte, n)
	}
	if p, ok := b[c].Get().(*[]byte); ok {
		return (*p)[:n]
	}
	return make([]byte, n, 1<<(c+smallestBuffer))
}

func (b *buffers) put(p []byte) {
	if c := bufferClass(cap(p)); c < len(b) && cap(p) == 1<<(c+smallestBuffer) {
		b[c].Put(&p)
	}
}
