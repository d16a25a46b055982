package ondemand

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// BenchmarkReady asks for 4 KiB at random of a layer that is present, as each miss of the reader's page cache does.
func BenchmarkReady(b *testing.B) {
	for _, count := range []int{1000, 100_000} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			m := add(b, run(b, Options{}), LayerOptions{}, 0, repeat(4096, count)...)
			for i := range m.extents {
				must(b, m.Put(i, m.content(i)))
			}
			m.Ready(0, 1)
			eventually(b, "places", func() bool { return m.places.known.Load() != nil })
			r := rand.New(rand.NewPCG(7, 8))
			b.ReportAllocs()
			for b.Loop() {
				if !m.Ready(r.Int64N(m.blob.Size())&^4095, 4096) {
					b.Fatal("not ready")
				}
			}
		})
	}
}

// BenchmarkSequential reads a layer from its beginning to its end in pieces of 128 KiB, as the kernel does.
func BenchmarkSequential(b *testing.B) {
	for _, extentBytes := range []int{16 << 10, 256 << 10, 4 << 20} {
		b.Run(fmt.Sprintf("%dKiB", extentBytes>>10), func(b *testing.B) {
			const total = 128 << 20
			b.SetBytes(total)
			var requests int
			for b.Loop() {
				b.StopTimer()
				m := add(b, run(b, Options{}), LayerOptions{}, 200, repeat(extentBytes, total/extentBytes)...)
				b.StartTimer()
				for off := int64(0); off < m.blob.Size(); off += 128 << 10 {
					if !m.Ready(off, 128<<10) {
						must(b, m.Fill(b.Context(), off, 128<<10))
					}
				}
				requests = len(m.source.seen())
				b.StopTimer()
				m.Close()
				must(b, m.blob.Close())
				b.StartTimer()
			}
			b.ReportMetric(float64(requests), "requests")
		})
	}
}
