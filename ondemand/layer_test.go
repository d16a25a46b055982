package ondemand

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestClose ends what waits and what is under way, and waits for it.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := run(t, Options{Quiet: time.Second})
		filling := make(chan context.Context, 1)
		m := add(t, e, LayerOptions{Complete: func(ctx context.Context, _ Pace) error {
			filling <- ctx
			<-ctx.Done()
			return context.Cause(ctx)
		}}, 0, repeat(100_000, 20)...)
		blocks(m.source, every)
		m.Prefetch(1 << 20)
		time.Sleep(2 * time.Second)
		var faults sync.WaitGroup
		for i := range m.extents {
			faults.Go(func() {
				if err := m.fillExtent(t, i); !errors.Is(err, ErrClosed) {
					t.Errorf("fault %d: %v", i, err)
				}
			})
		}
		synctest.Wait()
		began := time.Now()
		m.Close()
		faults.Wait()
		if err := context.Cause(<-filling); !errors.Is(err, ErrClosed) || time.Since(began) != 0 {
			t.Errorf("after %v, the background fill has %v", time.Since(began), err)
		}
		m.Close()
		if err := m.Fill(t.Context(), 0, 1); !errors.Is(err, ErrClosed) || m.Ready(0, 1) {
			t.Errorf("a closed layer answers with %v", err)
		}
		if err := m.Put(0, m.content(0)); !errors.Is(err, ErrClosed) {
			t.Errorf("put in a closed layer: %v", err)
		}
		if s := e.Stats(); s.Layers != 0 || s.Total.Faults != 20 || s.MemoryBytes != 0 || len(e.origins) != 0 {
			t.Errorf("the engine has %+v", s)
		}
	})
}

// TestEnd: who waits when Run ends gets an error, and so does who asks later.
func TestEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := New(Options{NewDecoder: newPlain})
		ctx, cancel := context.WithCancel(t.Context())
		m := add(t, e, LayerOptions{}, 0, repeat(100_000, 2)...)
		blocks(m.source, every)
		go func() {
			time.Sleep(time.Second)
			cancel()
		}()
		fault := make(chan error)
		go func() { fault <- m.fillExtent(t, 0) }()
		must(t, e.Run(ctx))
		if err := <-fault; !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
		if err := m.fillExtent(t, 1); !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
		if n := m.Stats().Failed; n != 0 {
			t.Errorf("%d faults have failed", n)
		}
	})
}

// TestBeforeRun: faults wait for Run, and a layer can be closed without it.
func TestBeforeRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := New(Options{NewDecoder: newPlain})
		m := add(t, e, LayerOptions{}, 0, 5000)
		closed := add(t, e, LayerOptions{PrefetchUntil: 1 << 20}, 0, 5000)
		closed.Close()
		fault := make(chan error)
		go func() { fault <- m.fillExtent(t, 0) }()
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- e.Run(ctx) }()
		must(t, <-fault)
		cancel()
		must(t, <-ended)
		if n := len(closed.source.seen()); n != 0 {
			t.Errorf("%d requests for a layer that was closed", n)
		}
	})
}

// TestCompleted is called once, also for a layer that was complete before, and may close it.
func TestCompleted(t *testing.T) {
	e := run(t, Options{})
	calls := make(chan *Layer, 10)
	layer := make(chan *Layer, 1)
	o := LayerOptions{Completed: func() {
		l := <-layer
		l.Close()
		calls <- l
	}}
	m := add(t, e, o, 0, repeat(5000, 40)...)
	layer <- m.Layer
	for i := range m.extents {
		if err := m.fillExtent(t, i); err != nil && !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
	}
	if got := <-calls; got != m.Layer {
		t.Error("another layer")
	}
	again := e.Add(m.blob, o)
	layer <- again
	if got := <-calls; got != again {
		t.Error("another layer")
	}
	if len(calls) > 0 {
		t.Error("called more than once")
	}
}

// TestPutWakes: what comes by the background fill answers those who wait for it, though their own request does not come.
func TestPutWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := add(t, run(t, Options{}), LayerOptions{}, 0, repeat(5000, 2)...)
		release := blocks(m.source, every)
		fault := make(chan error)
		go func() { fault <- m.fillExtent(t, 0) }()
		synctest.Wait()
		must(t, m.Put(0, m.content(0)))
		must(t, m.Put(0, m.content(0)))
		must(t, <-fault)
		if s := m.Stats(); s.BackgroundBytes != 5000 {
			t.Errorf("counted %+v", s)
		}
		if err := m.Put(1, m.content(1)[1:]); err == nil {
			t.Error("an extent of another length was put")
		}
		if err := m.Put(7, nil); err == nil {
			t.Error("an extent was put that is not there")
		}
		release()
	})
}

// TestIdleLayers: layers that nobody reads have no goroutines, and little memory.
func TestIdleLayers(t *testing.T) {
	e := run(t, Options{})
	list, content, dataBytes := layout(0, repeat(512, 2000)...)
	b := newBlob(t, list, dataBytes)
	goroutines := runtime.NumGoroutine()
	heap := heapBytes()
	const layers = 1000
	for range layers {
		l := e.Add(b, LayerOptions{Source: &source{bytes: content}})
		t.Cleanup(l.Close)
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Errorf("%d goroutines more", n-goroutines)
	}
	if each := (heapBytes() - heap) / layers; each > 4096 {
		t.Errorf("%d bytes for each layer", each)
	}
}

func heapBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
