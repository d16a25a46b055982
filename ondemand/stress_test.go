package ondemand

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestEverythingAtOnce has readers of all kinds over layers whose sources fail, lie and stall, while layers come and go and are filled in
// the background. Nobody gets wrong bytes, and what is asked for again comes in the end.
func TestEverythingAtOnce(t *testing.T) {
	e := run(t, Options{Memory: 1 << 20, Quiet: time.Millisecond, BackgroundRate: 8 << 20, Deadline: 20 * time.Second})
	var layers sync.WaitGroup
	for n := range 6 {
		layers.Go(func() {
			r := rand.New(rand.NewPCG(uint64(n), 1))
			for range 3 {
				lengths := make([]int, 200)
				for i := range lengths {
					lengths[i] = 1 + r.IntN(40<<10)
				}
				self := make(chan made, 1)
				m := add(t, e, LayerOptions{
					Name: fmt.Sprint("layer ", n), Origin: fmt.Sprint(n % 2), PrefetchUntil: 100 << 10,
					Complete: func(ctx context.Context, p Pace) error { return putAll(ctx, self, p) },
				}, 100, lengths...)
				self <- m
				faulty(m, uint64(n))
				readAll(t, m, n%3 == 0)
				m.Close()
				m.check(t)
			}
		})
	}
	layers.Wait()
	if s := e.Stats(); s.Waiting != 0 || s.MemoryBytes != 0 || s.Layers != 0 || len(e.origins) != 0 {
		t.Errorf("at the end: %+v", s)
	}
}

// faulty makes one of ten requests wrong in some way.
func faulty(m made, seed uint64) {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, 9))
	m.source.set(func(ctx context.Context, a asked, p []byte) error {
		mu.Lock()
		kind := r.IntN(50)
		mu.Unlock()
		switch kind {
		case 0:
			return errors.New("the registry fails")
		case 1, 2:
			copy(p, m.source.bytes[a.off:])
			p[len(p)/2] ^= 1
			return errDone
		case 3, 4:
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
}

// readAll reads all of a layer, or until it is closed in the middle.
func readAll(t *testing.T, m made, closed bool) {
	var done sync.WaitGroup
	var failures atomic.Int64
	for n := range 4 {
		done.Go(func() {
			r := rand.New(rand.NewPCG(uint64(n), 2))
			for off := int64(0); off < m.blob.Size(); {
				at, length := off, int64(32<<10)
				if n > 0 {
					at, length = r.Int64N(m.blob.Size()), 1+r.Int64N(64<<10)
				}
				ctx, cancel := context.WithCancel(t.Context())
				if r.IntN(20) == 0 {
					time.AfterFunc(time.Millisecond, cancel)
				}
				err := m.Fill(ctx, at, length)
				switch cancel(); {
				case errors.Is(err, ErrClosed) && closed:
					return
				case err != nil:
					failures.Add(1)
					continue
				case !m.Ready(at, length):
					select {
					case <-m.closing:
						return
					default:
						t.Errorf("%d bytes at %d: not ready after Fill", length, at)
					}
				}
				off += 32 << 10
			}
		})
	}
	if closed {
		eventually(t, "something is fetched", func() bool { return m.Stats().FilledBytes > 100<<10 })
		m.Close()
	}
	done.Wait()
}

// putAll is a background fill. self gives the layer that is filled.
func putAll(ctx context.Context, self chan made, p Pace) error {
	m := <-self
	self <- m
	for i := range m.extents {
		if err := p.Wait(ctx, int(m.extents[i].BlobLength)); err != nil {
			return err
		}
		if err := m.Put(i, m.content(i)); err != nil {
			return err
		}
	}
	return nil
}
