package ondemand

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// filler is a background fill that takes pieces of 64 KiB until it has taken all.
type filler struct {
	pieces  int
	running *atomic.Int32 // how many of them run; may be nil

	mu    sync.Mutex
	err   error // instead of the end
	began []time.Time
	took  []time.Time // each piece
}

const pieceBytes = 64 << 10

func (f *filler) complete(ctx context.Context, p Pace) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.began = append(f.began, time.Now())
	if f.running != nil {
		f.running.Add(1)
		defer f.running.Add(-1)
	}
	for range f.pieces {
		f.mu.Unlock()
		err := p.Wait(ctx, pieceBytes)
		f.mu.Lock()
		if err != nil {
			return err
		}
		f.took = append(f.took, time.Now())
	}
	return f.err
}

// seen returns when it began and when it took pieces.
func (f *filler) seen() (began, took []time.Time) {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.began), slices.Clone(f.took)
}

// TestFillWhenQuiet: the fill begins when no fault has had to fetch for a while, and goes at its rate.
func TestFillWhenQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &filler{pieces: 11}
		m := add(t, run(t, Options{BackgroundRate: pieceBytes}), LayerOptions{Complete: f.complete}, 0, repeat(5000, 100)...)
		began := time.Now()
		time.Sleep(3 * time.Second)
		must(t, m.fillExtent(t, 0))
		must(t, m.fillExtent(t, 0))
		time.Sleep(defaultQuiet - time.Nanosecond)
		if runs, _ := f.seen(); len(runs) > 0 {
			t.Fatalf("began after %v", runs[0].Sub(began))
		}
		time.Sleep(time.Minute)
		runs, took := f.seen()
		if len(runs) != 1 || runs[0].Sub(began) != 3*time.Second+defaultQuiet || len(took) != f.pieces {
			t.Fatalf("began at %v, took %d pieces", runs, len(took))
		}
		if ten := took[10].Sub(took[0]); ten != 10*time.Second {
			t.Errorf("ten pieces took %v", ten)
		}
		if s := m.Stats(); !s.Checked || s.Filling {
			t.Errorf("counted %+v", s)
		}
	})
}

// TestFillsAreOneAtATime: and a fill that has succeeded does not run again.
func TestFillsAreOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := run(t, Options{BackgroundRate: pieceBytes})
		var running atomic.Int32
		var all []*filler
		for range 3 {
			f := &filler{pieces: 5, running: &running}
			all = append(all, f)
			add(t, e, LayerOptions{Complete: f.complete}, 0, repeat(5000, 100)...)
		}
		for range 100 {
			time.Sleep(time.Second)
			if n := running.Load(); n > 1 {
				t.Fatalf("%d at a time", n)
			}
		}
		for i, f := range all {
			if runs, took := f.seen(); len(runs) != 1 || len(took) != 5 {
				t.Errorf("fill %d ran %d times and took %d pieces", i, len(runs), len(took))
			}
		}
	})
}

// TestFillPauses while readers wait, for any layer, but not for those who wait for ever.
func TestFillPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := run(t, Options{BackgroundRate: pieceBytes})
		f := &filler{pieces: 1000}
		add(t, e, LayerOptions{Complete: f.complete}, 0, repeat(5000, 100)...)
		other := add(t, e, LayerOptions{}, 0, repeat(100_000, 10)...)
		time.Sleep(defaultQuiet + 2*time.Second)
		synctest.Wait()
		taken := func() int { _, took := f.seen(); return len(took) }
		release := blocks(other.source, every)
		go func() { must(t, other.fillExtent(t, 0)) }()
		before := taken()
		time.Sleep(4 * time.Second)
		if got := taken() - before; got > 1 {
			t.Errorf("took %d pieces while a reader waits", got)
		}
		release()
		time.Sleep(3 * time.Second)
		if got := taken() - before; got < 2 {
			t.Error("does not go on after the reader was answered")
		}
		blocks(other.source, every)
		go func() { _ = other.fillExtent(t, 1) }()
		before = taken()
		time.Sleep(20 * time.Second)
		if got := taken() - before; got < 10 {
			t.Errorf("took %d pieces in 20 s while a reader waits who is not served", got)
		}
	})
}

// TestFillYields: a layer that is quiet waits for the faults of others to cease, as a program reads from several, but not for ever.
func TestFillYields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := run(t, Options{})
		f := &filler{pieces: 1}
		add(t, e, LayerOptions{Complete: f.complete}, 0, 5000)
		began := time.Now()
		other := add(t, e, LayerOptions{}, 0, repeat(200_000, 100)...)
		for i := range 90 {
			must(t, other.fillExtent(t, i))
			time.Sleep(time.Second)
		}
		if runs, _ := f.seen(); len(runs) != 1 || runs[0].Sub(began) < yieldMost || runs[0].Sub(began) > yieldMost+defaultQuiet {
			t.Errorf("ran at %v, want after %v", runs, yieldMost)
		}
	})
}

// TestFillOfHardRead: a layer that is read hard is filled sooner, beside another one, and without a bound, but not beside a program that starts.
func TestFillOfHardRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := run(t, Options{BackgroundRate: pieceBytes})
		slow, f := &filler{pieces: 1000}, &filler{pieces: 1000}
		for range 2 {
			add(t, e, LayerOptions{Complete: slow.complete}, 0, repeat(5000, 100)...)
		}
		time.Sleep(2 * defaultQuiet)
		m := add(t, e, LayerOptions{Complete: f.complete}, 0, repeat(100_000, 20)...)
		for i := range 5 {
			must(t, m.fillExtent(t, 3*i))
		}
		time.Sleep(2 * defaultQuiet / hardHurry)
		if runs, _ := f.seen(); len(runs) > 0 {
			t.Error("began though a quarter was read only")
		}
		must(t, m.fillExtent(t, 1))
		began := time.Now()
		time.Sleep(startTime / 2)
		must(t, m.fillExtent(t, 4))
		time.Sleep(startTime/2 - time.Nanosecond)
		if runs, _ := f.seen(); len(runs) > 0 {
			t.Error("began beside a program that starts")
		}
		time.Sleep(time.Second)
		if runs, took := f.seen(); len(runs) != 1 || len(took) != 1000 || took[999].Sub(began) > startTime+time.Second {
			t.Errorf("began at %v, took %d pieces", runs, len(took))
		}
		if !m.Stats().ReadHard {
			t.Error("does not say that it is read hard")
		}
	})
}

// TestRunningFillHurries: a fill that runs loses its bound.
func TestRunningFillHurries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &filler{pieces: 1000}
		m := add(t, run(t, Options{BackgroundRate: pieceBytes}), LayerOptions{Complete: f.complete}, 0, repeat(100_000, 20)...)
		time.Sleep(defaultQuiet + 10*time.Second)
		if _, took := f.seen(); len(took) < 5 || len(took) > 15 {
			t.Errorf("took %d pieces in 10 s", len(took))
		}
		for i := range 8 {
			must(t, m.fillExtent(t, i))
		}
		time.Sleep(time.Second)
		if _, took := f.seen(); len(took) != 1000 {
			t.Errorf("took %d pieces", len(took))
		}
	})
}

// TestFillFails: it runs again after pauses that grow.
func TestFillFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := errors.New("registry.example: status 503")
		f := &filler{err: down}
		m := add(t, run(t, Options{}), LayerOptions{Complete: f.complete}, 0, repeat(5000, 100)...)
		time.Sleep(time.Hour)
		runs, _ := f.seen()
		if n := len(runs); n < 8 || n > 15 {
			t.Fatalf("ran %d times in an hour", n)
		}
		for i, want := range []time.Duration{firstRetry, 2 * firstRetry, 4 * firstRetry} {
			if got := runs[i+1].Sub(runs[i]); got != want {
				t.Errorf("pause %d of %v, want %v", i, got, want)
			}
		}
		if s := m.Stats(); s.FailedFills != int64(len(runs)) || !errors.Is(s.LastError, down) {
			t.Errorf("counted %+v", s)
		}
		f.mu.Lock()
		f.err = nil
		f.mu.Unlock()
		time.Sleep(mostRetry)
		synctest.Wait()
		if !m.Stats().Checked {
			t.Error("not filled in the end")
		}
	})
}

// TestFillOfComplete: a layer all of whose data has come is checked all the same.
func TestFillOfComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &filler{pieces: 1}
		m := add(t, run(t, Options{}), LayerOptions{Complete: f.complete}, 0, 5000)
		must(t, m.fillExtent(t, 0))
		time.Sleep(time.Minute)
		if runs, _ := f.seen(); len(runs) != 1 || !m.Stats().Checked {
			t.Errorf("ran %d times", len(runs))
		}
	})
}
