package ondemand

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func classOf(c class) *atomic.Int32 {
	var v atomic.Int32
	v.Store(int32(c))
	return &v
}

// take takes what is free.
func (g *gate) take(t *testing.T, n int64) {
	t.Helper()
	if taken, err := g.enter(t.Context(), n, classOf(fault), nil); err != nil || taken != n {
		t.Fatalf("took %d of %d: %v", taken, n, err)
	}
}

// TestGateOrder: the most urgent first, and within a class who came first; a class that is raised goes with the better one.
func TestGateOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1, 0, 0)
		g.take(t, 1)
		var order []string
		wait := func(name string, c *atomic.Int32) {
			go func() {
				if _, err := g.enter(t.Context(), 1, c, nil); err != nil {
					t.Error(err)
				}
				order = append(order, name)
				g.leave(1, nil)
			}()
			synctest.Wait()
		}
		raised := classOf(prefetch)
		wait("prefetch 1", classOf(prefetch))
		wait("raised", raised)
		wait("ahead", classOf(ahead))
		wait("fault 1", classOf(fault))
		wait("fault 2", classOf(fault))
		raised.Store(int32(fault))
		g.review()
		g.leave(1, nil)
		synctest.Wait()
		if want := []string{"raised", "fault 1", "fault 2", "ahead", "prefetch 1"}; !slices.Equal(order, want) {
			t.Errorf("order %q, want %q", order, want)
		}
		if g.taken() != 0 {
			t.Errorf("%d taken at the end", g.taken())
		}
	})
}

// TestGateReserve: lower classes leave something, and who wants more than there is for him gets that.
func TestGateReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(8, 2, 4)
		enter := func(n int64, c *atomic.Int32) *atomic.Int64 {
			var taken atomic.Int64
			go func() {
				if n, err := g.enter(t.Context(), n, c, nil); err == nil {
					taken.Store(n)
				}
			}()
			synctest.Wait()
			return &taken
		}
		if got := enter(100, classOf(prefetch)).Load(); got != 4 {
			t.Errorf("prefetch took %d of 8, want 4", got)
		}
		if got := enter(1, classOf(prefetch)).Load(); got != 0 {
			t.Error("prefetch took of what it has to leave")
		}
		if got := enter(2, classOf(ahead)).Load(); got != 2 {
			t.Errorf("ahead took %d, want 2", got)
		}
		later := enter(1, classOf(ahead))
		if got := enter(2, classOf(fault)).Load(); got != 2 || later.Load() != 0 {
			t.Errorf("fault took %d, want 2; ahead %d, want 0", got, later.Load())
		}
		g.leave(4, nil)
		synctest.Wait()
		if later.Load() != 1 {
			t.Error("ahead still waits")
		}
	})
}

// TestGateCancel: who gives up takes nothing and does not hold up those behind him.
func TestGateCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(2, 0, 0)
		g.take(t, 1)
		ctx, cancel := context.WithCancelCause(t.Context())
		gaveUp := make(chan error, 1)
		go func() {
			_, err := g.enter(ctx, 2, classOf(fault), nil)
			gaveUp <- err
		}()
		synctest.Wait()
		entered := make(chan struct{})
		go func() {
			if _, err := g.enter(t.Context(), 1, classOf(fault), nil); err != nil {
				t.Error(err)
			}
			close(entered)
		}()
		synctest.Wait()
		select {
		case <-entered:
			t.Error("a small one has overtaken a large one")
		default:
		}
		cancel(ErrClosed)
		if err := <-gaveUp; !errors.Is(err, ErrClosed) {
			t.Errorf("gave up with %v", err)
		}
		<-entered
		if g.taken() != 2 {
			t.Errorf("%d taken, want 2", g.taken())
		}
	})
}

// TestGateHolder: who has nothing need not wait, at once or as soon as he has nothing; it is taken from what others get.
func TestGateHolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(2, 0, 0)
		g.take(t, 2)
		var h holder
		if _, err := g.enter(t.Context(), 1, classOf(prefetch), &h); err != nil || g.taken() != 3 {
			t.Fatalf("%d taken: %v", g.taken(), err)
		}
		var second atomic.Bool
		go func() {
			if _, err := g.enter(t.Context(), 1, classOf(prefetch), &h); err != nil {
				t.Error(err)
			}
			second.Store(true)
		}()
		synctest.Wait()
		if second.Load() {
			t.Error("a holder has two though there is nothing")
		}
		g.leave(1, &h)
		synctest.Wait()
		if !second.Load() || g.taken() != 3 {
			t.Errorf("let in: %t, %d taken", second.Load(), g.taken())
		}
		g.leave(1, &h)
		if g.leave(2, nil); g.taken() != 0 {
			t.Errorf("%d taken at the end", g.taken())
		}
	})
}
