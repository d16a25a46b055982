package ondemand

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

// TestFaultBeforePrefetch: with one request at a time, a fault that comes later goes before what is prefetched.
func TestFaultBeforePrefetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := add(t, run(t, Options{Parallel: 1}), LayerOptions{}, 0, repeat(prefetchBytes, 10)...)
		release := blocks(m.source, func(a asked) bool { return a.off == 0 })
		m.Prefetch(9 * prefetchBytes)
		synctest.Wait()
		var fault sync.WaitGroup
		fault.Go(func() { must(t, m.fillExtent(t, 9)) })
		synctest.Wait()
		release()
		fault.Wait()
		synctest.Wait()
		var order []int64
		for _, a := range m.source.seen() {
			order = append(order, a.off/prefetchBytes)
		}
		if want := []int64{0, 9, 1, 2, 3, 4, 5, 6, 7, 8}; !slices.Equal(order, want) {
			t.Errorf("order %v, want %v", order, want)
		}
	})
}

// TestPrefetch: all extents that lie in the range, and no others; a longer range later brings the rest.
func TestPrefetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := add(t, run(t, Options{}), LayerOptions{PrefetchUntil: 100 << 10}, 0, repeat(16<<10, 6000)...)
		synctest.Wait()
		if got := m.blob.Progress().PresentExtents; got != 6 {
			t.Errorf("%d extents are present, want 6", got)
		}
		m.Prefetch(50 << 10)
		m.Prefetch(10 << 20)
		synctest.Wait()
		if p := m.blob.Progress(); p.PresentExtents != 640 || m.blob.NextAbsent(0, p.Extents) != 640 {
			t.Errorf("%d extents are present, want the first 640", p.PresentExtents)
		}
		if s := m.Stats(); s.PrefetchedBytes != 640*16<<10 || s.Fetches > 30 || s.ReadHard {
			t.Errorf("counted %+v", s)
		}
	})
}

// TestPrefetchFails: it is not tried for ever; readers still get what they ask for.
func TestPrefetchFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := run(t, Options{})
		m := add(t, e, LayerOptions{}, 0, repeat(prefetchBytes, 10)...)
		m.source.bytes = m.source.bytes[:prefetchBytes*2] // the rest fails
		m.Prefetch(10 * prefetchBytes)
		synctest.Wait()
		if n := len(m.source.seen()); n > 4 {
			t.Errorf("asked %d times", n)
		}
		must(t, m.fillExtent(t, 1))
	})
}

// TestRaised: a request that a fault waits for is a fault.
func TestRaised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := add(t, run(t, Options{}), LayerOptions{}, 0, repeat(4096, 3)...)
		release := blocks(m.source, every)
		m.Prefetch(1 << 20)
		synctest.Wait()
		class := func() class {
			m.mu.Lock()
			defer m.mu.Unlock()
			return class(m.flying[1].class.Load())
		}
		if got := class(); got != prefetch {
			t.Errorf("before: %d", got)
		}
		var faults sync.WaitGroup
		faults.Go(func() { must(t, m.fillExtent(t, 1)) })
		synctest.Wait()
		if got := class(); got != fault {
			t.Errorf("after: %d", got)
		}
		release()
		faults.Wait()
	})
}

// TestDeadOrigin: an origin from which nothing comes takes neither requests nor memory from another, however many wait for it.
func TestDeadOrigin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := run(t, Options{Memory: 128 << 10})
		var readers sync.WaitGroup
		for range 10 {
			dead := add(t, e, LayerOptions{Origin: "dead.example"}, 0, repeat(64<<10, 20)...)
			blocks(dead.source, every)
			for i := range dead.extents {
				readers.Go(func() {
					if dead.fillExtent(t, i) == nil {
						t.Error("nothing has come, and a fault was answered")
					}
				})
			}
		}
		synctest.Wait()
		alive := add(t, e, LayerOptions{Origin: "mirror.example"}, 0, repeat(64<<10, 20)...)
		for i := range alive.extents {
			must(t, alive.fillExtent(t, i))
		}
		if s := e.Stats(); s.Waiting != 200 || s.Oldest.IsZero() || s.Layers != 11 {
			t.Errorf("counted %+v", s)
		}
		readers.Wait()
	})
}

// TestDeadBlob: a blob that does not come leaves a request to others of its origin.
func TestDeadBlob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := run(t, Options{})
		dead := add(t, e, LayerOptions{Origin: "registry.example"}, 0, repeat(64<<10, 20)...)
		release := blocks(dead.source, every)
		var readers sync.WaitGroup
		for i := range dead.extents {
			readers.Go(func() { must(t, dead.fillExtent(t, i)) })
		}
		synctest.Wait()
		if got := len(dead.source.seen()); got != 3 {
			t.Errorf("%d requests are under way, want three quarters of 4", got)
		}
		alive := add(t, e, LayerOptions{Origin: "registry.example"}, 0, repeat(64<<10, 20)...)
		for i := range alive.extents {
			must(t, alive.fillExtent(t, i))
		}
		release()
		readers.Wait()
	})
}

// TestMemory: no more is in memory than is allowed, and everything comes all the same, also an extent that is larger.
func TestMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := run(t, Options{Memory: 256 << 10, Parallel: 16})
		m := add(t, e, LayerOptions{}, 0, append(repeat(100<<10, 20), 600<<10)...)
		release := blocks(m.source, every)
		var readers sync.WaitGroup
		for i := range m.extents {
			readers.Go(func() { must(t, m.fillExtent(t, i)) })
		}
		synctest.Wait()
		if got := e.Stats().MemoryBytes; got > 256<<10 || got < 100<<10 {
			t.Errorf("%d bytes are in memory", got)
		}
		release()
		readers.Wait()
		synctest.Wait()
		if got := e.Stats().MemoryBytes; got != 0 {
			t.Errorf("%d bytes are in memory at the end", got)
		}
		m.check(t)
	})
}
