package ondemand

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestOneFetchForAll: many who ask for one extent at a time cause one request.
func TestOneFetchForAll(t *testing.T) {
	m := add(t, run(t, Options{}), LayerOptions{}, 300, 100_000, 100_000)
	release := make(chan struct{})
	m.source.set(func(ctx context.Context, _ asked, _ []byte) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	var readers sync.WaitGroup
	for range 20 {
		readers.Go(func() {
			if err := m.fillExtent(t, 0); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "all of them wait", func() bool { return len(m.Stats().Waiting) == 20 })
	close(release)
	readers.Wait()
	if calls := m.source.seen(); len(calls) != 1 {
		t.Errorf("requests %+v", calls)
	}
	m.check(t)
}

// TestNeighboursAreJoined: a fault for a small file brings those beside it, and no more than that.
func TestNeighboursAreJoined(t *testing.T) {
	m := add(t, run(t, Options{}), LayerOptions{}, 300, repeat(4000, 100)...)
	must(t, m.fillExtent(t, 10))
	calls := m.source.seen()
	if len(calls) != 1 || calls[0].n < leastBytes || calls[0].n > beforeBytes+leastBytes {
		t.Errorf("requests %+v", calls)
	}
	eventually(t, "all of the request is there", func() bool { return m.Stats().Pending == 0 })
	if n := m.check(t); n < 30 || n > 40 {
		t.Errorf("%d extents are present", n)
	}
}

// TestScatteredReads: who reads a little here and there gets nothing ahead that costs more than what is read.
func TestScatteredReads(t *testing.T) {
	m := add(t, run(t, Options{}), LayerOptions{}, 300, repeat(200_000, 200)...)
	var wanted int64
	for i := 0; i < 200; i += 7 {
		must(t, m.fillExtent(t, i))
		wanted += 200_000
	}
	if got := m.Stats().FetchedBytes; got > 2*wanted {
		t.Errorf("%d bytes fetched for %d", got, wanted)
	}
}

// TestCorruptBytes: they do not reach the blob, and another attempt brings the right ones.
func TestCorruptBytes(t *testing.T) {
	m := add(t, run(t, Options{}), LayerOptions{}, 0, 100_000)
	m.source.set(func(_ context.Context, a asked, p []byte) error {
		if a.attempt > 0 {
			return nil
		}
		copy(p, m.source.bytes[a.off:])
		p[len(p)/2] ^= 1
		return errDone
	})
	must(t, m.fillExtent(t, 0))
	m.check(t)
	if n := m.Stats().Corrupt; n != 1 {
		t.Errorf("%d corrupt", n)
	}
}

// TestCorruptForEver: the fault fails, and the extent stays absent.
func TestCorruptForEver(t *testing.T) {
	m := add(t, run(t, Options{}), LayerOptions{}, 0, 100_000)
	m.source.set(func(_ context.Context, _ asked, p []byte) error { clear(p); return errDone })
	if err := m.fillExtent(t, 0); !errors.Is(err, errDigest) {
		t.Errorf("got %v", err)
	}
	if m.blob.Present(0) {
		t.Error("corrupt data are present")
	}
}

// TestDeadline: a fault that waits in vain fails once after the deadline, those after it soon; when data come again, all is as before.
func TestDeadline(t *testing.T) {
	list, bytes, dataBytes := layout(0, 100_000, 100_000)
	b := newBlob(t, list, dataBytes)
	synctest.Test(t, func(t *testing.T) {
		var dead atomic.Bool
		dead.Store(true)
		s := &source{bytes: bytes}
		s.set(func(ctx context.Context, _ asked, _ []byte) error {
			for dead.Load() {
				select {
				case <-time.After(time.Second):
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		})
		e := New(Options{NewDecoder: newPlain, Deadline: time.Minute})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = e.Run(ctx) })
		l := e.Add(b, LayerOptions{Source: s})
		for i, want := range []time.Duration{time.Minute, impatience, impatience} {
			began := time.Now()
			if err := l.Fill(t.Context(), 0, 4096); !errors.Is(err, ErrDeadline) {
				t.Errorf("fault %d: %v", i, err)
			}
			if took := time.Since(began); took != want {
				t.Errorf("fault %d took %v, want %v", i, took, want)
			}
		}
		dead.Store(false)
		time.Sleep(10 * time.Second)
		if !l.Ready(0, 4096) {
			t.Error("what came after the deadline is not there")
		}
		l.mu.Lock()
		vain := len(l.vain)
		l.mu.Unlock()
		if vain > 0 {
			t.Error("after data came, it is remembered that a fault has waited in vain")
		}
		l.Close()
		cancel()
		running.Wait()
	})
}
