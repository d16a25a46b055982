package ondemand

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
)

// blocks makes the calls of a source wait until release is called, or their context ends.
func blocks(s *source, which func(asked) bool) (release func()) {
	open := make(chan struct{})
	s.set(func(ctx context.Context, a asked, _ []byte) error {
		if !which(a) {
			return nil
		}
		select {
		case <-open:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	return sync.OnceFunc(func() { close(open) })
}

func every(asked) bool { return true }

// TestSingleFlight: whoever asks for an extent, it is fetched once.
func TestSingleFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := add(t, run(t, Options{}), LayerOptions{}, 0, 10000, 10000)
		release := blocks(m.source, every)
		var faults sync.WaitGroup
		for n := range 20 {
			faults.Go(func() { must(t, m.fillExtent(t, n%2)) })
			synctest.Wait()
		}
		if s := m.Stats(); len(s.Waiting) != 20 || s.Pending != 2 || m.engine.Waiting() != 20 {
			t.Errorf("before the answer: %+v", s)
		}
		release()
		faults.Wait()
		if calls := m.source.seen(); len(calls) != 1 {
			t.Errorf("asked for %v", calls)
		}
		if s := m.Stats(); s.Faults != 20 || s.Fetches != 1 || s.FilledBytes != 20000 || len(s.Waiting)+s.Pending != 0 {
			t.Errorf("afterwards: %+v", s)
		}
		m.check(t)
	})
}

// TestJoin: what is near comes with what is needed, up to 128 KiB, and 32 KiB from before it; what is far does not.
func TestJoin(t *testing.T) {
	for name, test := range map[string]struct {
		gap     int64
		lengths []int
		first   int // present extents
		fault   [2]int
		want    []asked
	}{
		"small ones":        {gap: 100, lengths: repeat(10000, 20), fault: [2]int{5, 6}, want: []asked{{off: 2*10100 + 100, n: 15*10100 - 100}}},
		"at the end":        {gap: 100, lengths: repeat(10000, 20), fault: [2]int{18, 19}, want: []asked{{off: 15*10100 + 100, n: 5*10100 - 100}}},
		"a large one":       {lengths: []int{130_000, 5000}, fault: [2]int{0, 1}, want: []asked{{n: 130_000}}},
		"a large neighbour": {lengths: []int{5000, 130_000}, fault: [2]int{0, 1}, want: []asked{{n: 5000}}},
		"at the beginning":  {lengths: repeat(10000, 20), fault: [2]int{1, 2}, want: []asked{{n: 140_000}}},
		"large ones before": {lengths: []int{20_000, 20_000, 5000}, fault: [2]int{2, 3}, want: []asked{{off: 20_000, n: 25_000}}},
		"far apart":         {gap: gapBytes + 1, lengths: repeat(5000, 3), fault: [2]int{0, 1}, want: []asked{{off: gapBytes + 1, n: 5000}}},
		"just near enough":  {gap: 20 << 10, lengths: repeat(5000, 9), fault: [2]int{0, 1}, want: []asked{{off: 20 << 10, n: 5000*5 + 4*20<<10}}},
		"needed":            {lengths: repeat(10000, 20), fault: [2]int{0, 15}, want: []asked{{n: 150_000}}},
		"needed, far apart": {gap: gapBytes + 1, lengths: repeat(5000, 3), fault: [2]int{0, 2},
			want: []asked{{off: gapBytes + 1, n: 5000}, {off: 2*(gapBytes+1) + 5000, n: 5000}}},
		"too much for one": {lengths: repeat(400_000, 4), fault: [2]int{0, 4}, want: []asked{{n: 800_000}, {off: 800_000, n: 800_000}}},
		"some are present": {lengths: repeat(10000, 5), first: 2, fault: [2]int{0, 3}, want: []asked{{off: 20000, n: 30000}}},
	} {
		t.Run(name, func(t *testing.T) {
			m := add(t, run(t, Options{}), LayerOptions{}, test.gap, test.lengths...)
			for i := range test.first {
				must(t, m.Put(i, m.content(i)))
			}
			off := m.extents[test.fault[0]].Offset
			must(t, m.Fill(t.Context(), off, m.extents[test.fault[1]-1].End()-off))
			calls := m.source.seen()
			slices.SortFunc(calls, func(a, b asked) int { return int(a.off - b.off) })
			if !slices.Equal(calls, test.want) {
				t.Errorf("asked for %v, want %v", calls, test.want)
			}
		})
	}
}

// TestGapsOfPresent: extents that are present are read over if that is little, and never fetched for themselves.
func TestGapsOfPresent(t *testing.T) {
	m := add(t, run(t, Options{}), LayerOptions{}, 0, 5000, 5000, 5000, 40000, 5000)
	for _, i := range []int{1, 3} {
		must(t, m.Put(i, m.content(i)))
	}
	must(t, m.fillExtent(t, 0))
	if want := []asked{{n: 15000}}; !slices.Equal(m.source.seen(), want) {
		t.Errorf("asked for %v, want %v", m.source.seen(), want)
	}
}

// together is a layer whose extents are decoded of one range each three.
func together(t *testing.T, e *Engine, groups int) made { return togetherBy(t, e, 3, 3000, 3*groups) }

// togetherBy is a layer of count extents of which so many at a time are decoded of one range.
func togetherBy(t *testing.T, e *Engine, perRange, length, count int) made {
	list, bytes, dataBytes := layout(0, repeat(length, count)...)
	for i := range list {
		first := i / perRange * perRange
		list[i].InnerOffset = list[i].BlobOffset - list[first].BlobOffset
		list[i].BlobOffset, list[i].BlobLength = list[first].BlobOffset, uint32(perRange*length)
	}
	m := made{source: &source{bytes: bytes}, extents: list, blob: newBlob(t, list, dataBytes)}
	m.Layer = e.Add(m.blob, LayerOptions{Name: "sha256:layer", Source: m.source})
	t.Cleanup(m.Layer.Close)
	return m
}

// TestTogether: extents of one range are fetched and decoded together, also those before the one that is needed.
func TestTogether(t *testing.T) {
	var opened int
	var mu sync.Mutex
	e := run(t, Options{NewDecoder: func() Decoder {
		return &hooked{open: func() { mu.Lock(); opened++; mu.Unlock() }}
	}})
	m := together(t, e, 30)
	must(t, m.fillExtent(t, 31))
	if want := []asked{{off: 63_000, n: 153_000}}; !slices.Equal(m.source.seen(), want) {
		t.Errorf("asked for %v, want %v", m.source.seen(), want)
	}
	eventually(t, "all of it is there", func() bool { return m.blob.Progress().PresentExtents == 51 })
	if mu.Lock(); opened != 17 {
		t.Errorf("opened %d ranges, want 17", opened)
	}
	mu.Unlock()
	for i := range m.extents {
		x := m.extents[i]
		if !m.blob.Present(i) {
			continue
		}
		got := make([]byte, x.Length)
		_, err := m.blob.File().ReadAt(got, x.Offset)
		must(t, err)
		if !bytes.Equal(got, m.source.bytes[x.BlobOffset+x.InnerOffset:][:x.Length]) {
			t.Errorf("extent %d has other bytes", i)
		}
	}
}

// TestTogetherOnce: a range is fetched once for all faults that need extents of it, however long it is and however many there are, and what
// lies before it does not take the place of what a fault needs.
func TestTogetherOnce(t *testing.T) {
	for name, c := range map[string]struct{ perRange, length, count, need int }{
		"long range":   {6, 400 << 10, 12, 9},
		"many extents": {5000, 8, 5000, 4900},
	} {
		t.Run(name, func(t *testing.T) {
			m := togetherBy(t, run(t, Options{}), c.perRange, c.length, c.count)
			must(t, m.fillExtent(t, c.need))
			x := m.extents[c.need]
			if calls := m.source.seen(); len(calls) != 1 || calls[0].end() < x.BlobOffset+int64(x.BlobLength) {
				t.Errorf("asked for %v", calls)
			}
		})
	}
	t.Run("long one behind a small one", func(t *testing.T) {
		m := add(t, run(t, Options{}), LayerOptions{}, 0, 8000, 2*mostBytes)
		must(t, m.fillExtent(t, 1))
		if want := []asked{{8000, 2 * mostBytes, 0}}; !slices.Equal(m.source.seen(), want) {
			t.Errorf("asked for %v, want %v", m.source.seen(), want)
		}
	})
}

// TestNeededFirst: a fault does not wait until what comes from before it is decoded.
func TestNeededFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m made
		opened := 0
		e := run(t, Options{NewDecoder: func() Decoder {
			return &hooked{open: func() {
				if opened++; opened == 2 {
					time.Sleep(time.Second)
				}
			}}
		}})
		m = add(t, e, LayerOptions{}, 0, repeat(8000, 20)...)
		began := time.Now()
		must(t, m.fillExtent(t, 4))
		if took := time.Since(began); took > 0 {
			t.Errorf("waited %v for others", took)
		}
		time.Sleep(2 * time.Second)
		if !m.blob.Present(0) || !m.blob.Present(5) {
			t.Error("its neighbours did not come")
		}
		m.check(t)
	})
}

// hooked is a plain decoder that calls functions.
type hooked struct {
	plain
	open   func()
	early  func() error // an error before all bytes have come
	decode func(blob.Extent)
}

func (h *hooked) Open(kind uint8, off int64, compressed []byte, more func(int) int) error {
	if h.open != nil {
		h.open()
	}
	if h.early != nil {
		if err := h.early(); err != nil {
			return err
		}
	}
	return h.plain.Open(kind, off, compressed, more)
}

func (h *hooked) Decode(x blob.Extent, dst []byte) error {
	if h.decode != nil {
		h.decode(x)
	}
	return h.plain.Decode(x, dst)
}

// TestAnsweredAsItComes: a fault waits neither for what its request brings besides, nor for other requests.
func TestAnsweredAsItComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		held := make(chan struct{})
		e := run(t, Options{NewDecoder: func() Decoder {
			return &hooked{decode: func(x blob.Extent) {
				if x.Offset > 0 {
					<-held
				}
			}}
		}})
		m := add(t, e, LayerOptions{}, 0, repeat(4096, 4)...)
		must(t, m.fillExtent(t, 0))
		if calls := m.source.seen(); len(calls) != 1 || m.blob.Present(1) {
			t.Errorf("asked for %v; the next extent is present: %t", calls, m.blob.Present(1))
		}
		close(held)
		must(t, m.fillExtent(t, 3))
		if calls := m.source.seen(); len(calls) != 1 {
			t.Errorf("asked for %v", calls)
		}
	})
}

// TestExpiredFault: a fault fails in time, the request goes on, and a later fault waits for the same one.
func TestExpiredFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := add(t, run(t, Options{}), LayerOptions{}, 0, 500_000, 5000)
		release := blocks(m.source, every)
		expect := func(i int, want time.Duration) (err error) {
			t.Helper()
			began := time.Now()
			if err = m.fillExtent(t, i); !errors.Is(err, ErrDeadline) || time.Since(began) != want {
				t.Errorf("extent %d after %v: %v", i, time.Since(began), err)
			}
			return err
		}
		err := expect(1, defaultDeadline)
		for _, part := range []string{"sha256:layer", "5000 bytes at 503808", "1m0s"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q does not name %q", err, part)
			}
		}
		if s := m.Stats(); s.Expired != 1 || s.Failed != 1 || s.Pending != 1 || s.LastError == nil {
			t.Errorf("counted %+v", s)
		}
		expect(1, impatience)
		expect(0, defaultDeadline)
		expect(1, defaultDeadline) // the first one is forgotten
		time.AfterFunc(impatience/2, release)
		must(t, m.fillExtent(t, 1))
		must(t, m.fillExtent(t, 0))
		if calls := m.source.seen(); len(calls) != 2 {
			t.Errorf("asked for %v", calls)
		}
	})
}

// TestCancelledFault returns at once, and is no failure; the request goes on.
func TestCancelledFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := add(t, run(t, Options{}), LayerOptions{}, 0, 5000)
		release := blocks(m.source, every)
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("the reader was killed")
		time.AfterFunc(time.Second, func() { cancel(gone) })
		began := time.Now()
		if err := m.Fill(ctx, 0, 1); !errors.Is(err, gone) || time.Since(began) != time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		if s := m.Stats(); s.Failed != 0 || len(s.Waiting) != 0 || s.Pending != 1 {
			t.Errorf("counted %+v", s)
		}
		release()
		synctest.Wait()
		if !m.blob.Present(0) || !m.Ready(0, 5000) {
			t.Error("the request did not go on")
		}
	})
}

// TestSourceFails: those who wait get the error, and who asks later makes another request, after a pause that grows.
func TestSourceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := add(t, run(t, Options{}), LayerOptions{}, 0, repeat(5000, 10)...)
		down := errors.New("registry.example: status 503")
		m.source.set(func(context.Context, asked, []byte) error { return down })
		var readers sync.WaitGroup
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		for i := range 10 {
			readers.Go(func() {
				for ctx.Err() == nil {
					err := m.Fill(ctx, m.extents[i].Offset, 1)
					if ctx.Err() == nil && !errors.Is(err, down) {
						t.Errorf("reader %d: %v", i, err)
					}
				}
			})
		}
		readers.Wait()
		stop()
		if n := len(m.source.seen()); n < 10 || n > 60 {
			t.Errorf("asked %d times in a minute", n)
		}
		m.source.set(nil)
		must(t, m.fillExtent(t, 3))
		if s := m.Stats(); s.FailedFetches < 10 || s.Failed < 20 || !errors.Is(s.LastError, down) {
			t.Errorf("counted %+v", s)
		}
		m.check(t)
	})
}

// TestWriteFails: a fault whose data cannot be written fails, and nothing is present.
func TestWriteFails(t *testing.T) {
	list, content, dataBytes := layout(0, repeat(5000, 3)...)
	dir := t.TempDir()
	must(t, blob.Create(dir, testID, dataBytes, slices.Values(list)))
	data, err := os.Open(filepath.Join(dir, blob.DataName)) // not for writing
	must(t, err)
	defer data.Close()
	b, err := blob.Open(dir, testID, blob.Options{Data: data})
	must(t, err)
	defer b.Close()
	l := run(t, Options{}).Add(b, LayerOptions{Name: "sha256:full", Source: &source{bytes: content}})
	defer l.Close()
	err = l.Fill(t.Context(), 8192, 1)
	if err == nil || !strings.Contains(err.Error(), "write extent 1") || !strings.Contains(err.Error(), "sha256:full") {
		t.Errorf("got %v", err)
	}
	if b.Progress().PresentExtents != 0 || l.Ready(0, 1) {
		t.Error("something is present")
	}
	if err := l.Put(0, content[:5000]); err == nil {
		t.Error("put nothing, without an error")
	}
	eventually(t, "nothing is on its way", func() bool { return l.Stats().Pending == 0 })
}

// TestDamagedTable: who needs what cannot be read of the table gets that error, and nobody else.
func TestDamagedTable(t *testing.T) {
	list, content, dataBytes := layout(0, repeat(4096, 200)...)
	dir := t.TempDir()
	must(t, blob.Create(dir, testID, dataBytes, slices.Values(list)))
	f, err := os.OpenFile(filepath.Join(dir, blob.ExtentsName), os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("damage"), 2*4096+100)
	must(t, errors.Join(err, f.Close()))
	b, err := blob.Open(dir, testID, blob.Options{})
	must(t, err)
	defer b.Close()
	l := run(t, Options{}).Add(b, LayerOptions{Source: &source{bytes: content}, PrefetchUntil: 1 << 30})
	defer l.Close()
	if err := l.Fill(t.Context(), 100*4096, 1); !errors.Is(err, blob.ErrUnusable) {
		t.Errorf("got %v", err)
	}
	must(t, l.Fill(t.Context(), 0, 4096))
	for _, i := range []int64{62, 126, 128, 190} { // also what lies next to it
		must(t, l.Fill(t.Context(), i*4096, 4096))
	}
}

// TestCorrupt: what is corrupt is fetched again, and only that, until it is right.
func TestCorrupt(t *testing.T) {
	m := add(t, run(t, Options{}), LayerOptions{}, 0, repeat(10000, 6)...)
	m.source.set(func(_ context.Context, a asked, p []byte) error {
		copy(p, m.source.bytes[a.off:])
		if a.attempt < 2 {
			p[25000-a.off]++ // extent 2
		}
		return errDone
	})
	must(t, m.Fill(t.Context(), 0, m.blob.Size()))
	want := []asked{{n: 60000}, {off: 20000, n: 10000, attempt: 1}, {off: 20000, n: 10000, attempt: 2}}
	if calls := m.source.seen(); !slices.Equal(calls, want) {
		t.Errorf("asked for %v, want %v", calls, want)
	}
	if s := m.Stats(); s.Corrupt != 2 || s.Failed != 0 || m.check(t) != 6 {
		t.Errorf("counted %+v", s)
	}
}

// TestAlwaysCorrupt: no byte that is wrong is written, the fault fails in the end, and the next one tries again.
func TestAlwaysCorrupt(t *testing.T) {
	m := add(t, run(t, Options{}), LayerOptions{Attempts: 3}, 0, repeat(10000, 2)...)
	m.source.set(func(_ context.Context, a asked, p []byte) error {
		copy(p, m.source.bytes[a.off:])
		p[len(p)-1]++ // extent 1
		return errDone
	})
	err := m.Fill(t.Context(), 0, m.blob.Size())
	if !errors.Is(err, errDigest) || !m.blob.Present(0) {
		t.Fatalf("got %v", err)
	}
	for _, part := range []string{"sha256:layer", "extent 1", "10000 bytes at 12288", "bytes 10000 to 20000", "corrupt 3 times"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not name %q", err, part)
		}
	}
	if calls := m.source.seen(); len(calls) != 3 || calls[2].attempt != 2 {
		t.Errorf("asked for %v", calls)
	}
	if got := make([]byte, 10000); m.blob.Present(1) {
		t.Error("a corrupt extent is present")
	} else if _, err := m.blob.File().ReadAt(got, m.extents[1].Offset); err == nil && !bytes.Equal(got, make([]byte, 10000)) {
		t.Error("corrupt bytes were written")
	}
	m.source.set(nil)
	must(t, m.fillExtent(t, 1))
}
