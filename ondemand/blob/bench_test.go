package blob

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
)

func BenchmarkPresent(b *testing.B) {
	blob, extents, _ := newBlob(b, 10000, 100)
	for i := 0; i < len(extents); i += 2 {
		blob.present.set(i)
	}
	i := 0
	for b.Loop() {
		blob.Present(i)
		i = (i + 7919) % len(extents)
	}
}

// BenchmarkCovering looks up 4 KiB at random in a large layer, as a fault does.
func BenchmarkCovering(b *testing.B) {
	for _, count := range []int{1000, 100000} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			blob, _, _ := newBlob(b, count, 20000)
			r := rand.New(rand.NewPCG(7, 8))
			for b.Loop() {
				if _, _, err := blob.Covering(r.Int64N(blob.Size())&^4095, 4096); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkOpen1000 opens a thousand blobs of 5000 extents each, and says what each takes of memory. None of it is outside of the heap.
func BenchmarkOpen1000(b *testing.B) {
	_, _, dir := newBlob(b, 5000, 20000)
	blobs := make([]*Blob, 1000)
	for b.Loop() {
		before := heapBytes()
		for i := range blobs {
			var err error
			blobs[i], err = Open(dir, testID, Options{})
			must(b, err)
		}
		b.StopTimer()
		b.ReportMetric(float64(heapBytes()-before)/float64(len(blobs)), "heap-B/blob")
		for i, blob := range blobs {
			must(b, blob.Close())
			blobs[i] = nil
		}
		b.StartTimer()
	}
}

func heapBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
