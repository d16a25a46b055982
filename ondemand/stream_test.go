package ondemand

import (
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
)

// read reads n bytes at off as a transport does, and waits until all that it has caused has happened.
func (m made) read(t *testing.T, off, n int64) {
	t.Helper()
	if !m.Ready(off, n) {
		must(t, m.Fill(t.Context(), off, n))
	}
	synctest.Wait()
}

// ahead is how many bytes are present or on their way after off.
func (m made) ahead(off int64) (n int64) {
	for i, x := range m.extents {
		if x.Offset >= off && m.blob.Present(i) {
			n += int64(x.Length)
		}
	}
	return n
}

// TestSequential: the window of a stream doubles up to 4 MiB, nothing is fetched twice, and no request is longer than 1 MiB.
func TestSequential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const readBytes = 128 << 10
		m := add(t, run(t, Options{}), LayerOptions{}, 0, repeat(16<<10, 3000)...)
		var most int64
		faults := 0
		for off := int64(0); off+readBytes <= m.blob.Size(); off += readBytes {
			if !m.Ready(off, readBytes) {
				faults++
			}
			m.read(t, off, readBytes)
			if off == 0 && m.ahead(readBytes) > 0 {
				t.Errorf("%d bytes are fetched ahead of the first read", m.ahead(readBytes))
			}
			most = max(most, m.ahead(off+readBytes))
			if ahead := m.ahead(off + readBytes); ahead > 2*mostWindow {
				t.Fatalf("%d bytes ahead of %d", ahead, off)
			}
		}
		if faults > streamBegins/readBytes {
			t.Errorf("%d reads found something absent, want the first %d", faults, streamBegins/readBytes)
		}
		if most < mostWindow {
			t.Errorf("never more than %d bytes ahead", most)
		}
		calls := m.source.seen()
		slices.SortFunc(calls, func(a, b asked) int { return int(a.off - b.off) })
		for i, a := range calls {
			if i > 0 && a.off != calls[i-1].end() {
				t.Errorf("request %v after %v", a, calls[i-1])
			}
			if a.n > mostBytes {
				t.Errorf("a request of %d bytes", a.n)
			}
		}
		if n := len(calls); n > 80 {
			t.Errorf("%d requests for %d MiB", n, m.blob.Size()>>20)
		}
	})
}

// TestStreamsAtOnce: several readers of a layer are followed.
func TestStreamsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := add(t, run(t, Options{}), LayerOptions{}, 0, repeat(16<<10, 2000)...)
		part := m.blob.Size() / streamsPerLayer
		absent := 0
		for off := int64(0); off < 4<<20; off += 128 << 10 {
			for n := range int64(streamsPerLayer) {
				if !m.Ready(n*part+off, 128<<10) {
					absent++
				}
				m.read(t, n*part+off, 128<<10)
			}
		}
		if absent > streamBegins>>17*streamsPerLayer {
			t.Errorf("%d reads found something absent, want %d of each reader", absent, streamBegins>>17)
		}
	})
}

// TestReadsOutOfOrder: the kernel's reads do not always come in order.
func TestReadsOutOfOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := add(t, run(t, Options{}), LayerOptions{}, 0, repeat(16<<10, 1000)...)
		absent := 0
		for off := int64(0); off < 8<<20; off += 256 << 10 {
			for _, at := range []int64{off + 128<<10, off} {
				if !m.Ready(at, 128<<10) {
					absent++
				}
				m.read(t, at, 128<<10)
			}
		}
		if absent > 7 {
			t.Errorf("%d reads found something absent", absent)
		}
	})
}

// TestRandom: reads here and there bring what they need, and little more.
func TestRandom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := add(t, run(t, Options{}), LayerOptions{}, 0, repeat(16<<10, 4000)...)
		r := rand.New(rand.NewPCG(3, 4))
		const reads = 50
		for range reads {
			m.read(t, r.Int64N(m.blob.Size())&^4095, 4096)
		}
		if got := m.Stats().FetchedBytes; got > reads*leastBytes*3/2 {
			t.Errorf("%d bytes for %d reads", got, reads)
		}
	})
}

// TestStreamOverPresent: what is present already is passed over.
func TestStreamOverPresent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := add(t, run(t, Options{}), LayerOptions{}, 0, repeat(16<<10, 1000)...)
		for i := range m.extents {
			if i%100 >= 40 {
				must(t, m.Put(i, m.content(i)))
			}
		}
		for off := int64(0); off < m.blob.Size(); off += 128 << 10 {
			m.read(t, off, 128<<10)
		}
		if got, want := m.Stats().FetchedBytes, int64(400*16<<10); got != want {
			t.Errorf("fetched %d bytes, want %d", got, want)
		}
		m.check(t)
	})
}

// TestSparseReader: who reads a little here and there, always further on, is no stream for long.
func TestSparseReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := add(t, run(t, Options{}), LayerOptions{}, 0, repeat(16<<10, 2000)...)
		const reads, step = 200, 100 << 10
		for i := range int64(reads) {
			m.read(t, i*step&^4095, 4096)
		}
		if got, most := m.Stats().FetchedBytes, int64(reads*step*3/2); got > most {
			t.Errorf("%d bytes for reads over %d", got, reads*step)
		}
		if ahead := m.ahead(reads * step); ahead > 1<<20 {
			t.Errorf("%d bytes are fetched ahead", ahead)
		}
	})
}
