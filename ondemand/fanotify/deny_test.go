package fanotify

import (
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// A keeper denies what the daemon has left and what comes, until the daemon is back.
func TestDeny(t *testing.T) {
	l, g, f := watched(t, 1<<20)
	left := leave(t, l, g, f, 10)
	waiting := l.read(t, 11)
	eventually(t, "an event in the queue", func() bool { return queued(t, g) > 0 })

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type result struct {
		denied int
		err    error
	}
	ended := make(chan result, 1)
	go func() {
		denied, err := g.Deny(ctx)
		ended <- result{denied, err}
	}()
	for i, r := range []reading{left, waiting, l.read(t, 12)} {
		if err := r.wait(t); !errors.Is(err, unix.EIO) {
			t.Errorf("read %d: got %v, want EIO", i, err)
		}
	}
	cancel()
	if r := <-ended; r.err != nil || r.denied < 3 {
		t.Errorf("denied %d, %v", r.denied, r.err)
	}
	if n := leftInJournal(t, g); n != 0 {
		t.Errorf("%d events are left", n)
	}

	f.before = nil
	serve(t, g, f)
	for page := range int64(15) {
		if err := l.read(t, page).wait(t); err != nil {
			t.Errorf("page %d: %v", page, err)
		}
	}
}

// What waits now is denied, and what comes later waits.
func TestDenyWaiting(t *testing.T) {
	l, g, f := watched(t, 4<<20)
	deny := func(least, most int) {
		t.Helper()
		if n, err := g.DenyWaiting(t.Context()); err != nil || n < least || n > most {
			t.Fatalf("denied %d, %v, want %d to %d", n, err, least, most)
		}
	}
	left := leave(t, l, g, f, 10)
	waiting := l.read(t, 11)
	eventually(t, "an event in the queue", func() bool { return queued(t, g) > 0 })
	deny(2, 8) // the kernel tries again to read what it could not
	for len(left)+len(waiting) < 2 {
		deny(0, 8)
	}
	for i, r := range []reading{left, waiting} {
		if err := r.wait(t); !errors.Is(err, unix.EIO) {
			t.Errorf("read %d: got %v, want EIO", i, err)
		}
	}
	deny(0, 0)
	later := l.read(t, 12)
	eventually(t, "an event in the queue", func() bool { return queued(t, g) > 0 })
	if n := leftInJournal(t, g); n != 0 {
		t.Errorf("%d events are left", n)
	}
	f.before = nil
	serve(t, g, f)
	must(t, later.wait(t))
}

// A group with many readers does not keep its caller from other groups.
func TestDenyWaitingEnds(t *testing.T) {
	const readers = slots + 10
	l, g, _ := watched(t, 1<<20)
	var waiting []reading
	for i := range int64(readers) {
		waiting = append(waiting, l.read(t, i))
	}
	eventually(t, "all events in the queue", func() bool { return queued(t, g) == readers })
	for ended := 0; ended < readers; {
		if n, err := g.DenyWaiting(t.Context()); err != nil || n > slots {
			t.Fatalf("denied %d, %v, want at most %d", n, err, slots)
		}
		ended = 0
		for _, r := range waiting {
			ended += len(r)
		}
	}
	for i, r := range waiting {
		if err := r.wait(t); !errors.Is(err, unix.EIO) {
			t.Errorf("read %d: got %v, want EIO", i, err)
		}
	}
}

// A reader that is killed while it waits dies at once, and its event is no trouble to anybody.
func TestKilledReader(t *testing.T) {
	l, g, f := watched(t, 1<<20)
	open := make(chan struct{})
	f.before = func(ctx context.Context, _, _ int64) error {
		select {
		case <-open:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	// One is read by a process and handed out, the other one is in the queue.
	stop := serve(t, g, f)
	first := l.reader(t, 1, false)
	eventually(t, "a fill", func() bool { return len(g.Stats().InFlight) == 1 })
	stop()
	second := l.reader(t, 1, false)
	eventually(t, "an event in the queue", func() bool { return queued(t, g) > 0 })
	first.kill()
	second.kill()
	if n := queued(t, g); n != 0 {
		t.Errorf("%d events in the queue of a dead reader", n)
	}
	close(open)
	serve(t, g, f)
	l.reader(t, 4, false).finished(l)
	if st := g.Stats(); st.Inherited != 1 || st.Failed != 0 {
		t.Errorf("%+v", st)
	}
}
