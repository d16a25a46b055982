package fanotify

import (
	"context"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// need skips a test that cannot watch an EROFS mount.
func need(t testing.TB) {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.EROFS, preContent)
}

// watched is a layer that is mounted after it was watched.
func watched(t testing.TB, size int64) (*layer, *Group, *filler) {
	t.Helper()
	need(t)
	l := newLayer(t, size)
	g := l.watch(t)
	l.mount(t)
	return l, g, l.filler()
}

func TestFillsOnDemand(t *testing.T) {
	l, g, f := watched(t, 8<<20)
	serve(t, g, f)
	for _, page := range []int64{1000, 3, 2047, 3, 0} {
		if err := l.read(t, page).wait(t); err != nil {
			t.Errorf("page %d: %v", page, err)
		}
	}
	if n := f.fills.Load(); n == 0 || n > 4 {
		t.Errorf("%d fills for 4 pages", n)
	}
	all, err := os.ReadFile(l.path)
	if err != nil || int64(len(all)) != l.size {
		t.Fatalf("read %d bytes, %v", len(all), err)
	}
	if err := checkContent(all, 0); err != nil {
		t.Error(err)
	}
	eventually(t, "nothing in flight", func() bool { return len(g.Stats().InFlight) == 0 })
	st := g.Stats()
	if st.Events != st.Hits.Count+st.Fills.Count || st.Fills.Count != uint64(f.fills.Load()) || st.Failed+st.Refused+st.Notices != 0 {
		t.Errorf("%+v", st)
	}
	if st.Asked < uint64(l.size) {
		t.Errorf("%d bytes asked for", st.Asked)
	}
}

// What is there is answered although something else is waited for, by the same mount.
func TestHitsDoNotWaitForFills(t *testing.T) {
	l, g, f := watched(t, 1<<20)
	must(t, f.fill(pageOf(100), pageBytes))
	gate := gates{pageOf(7): make(chan struct{})}
	f.before = gate.before
	serve(t, g, f)
	held := l.read(t, 7)
	eventually(t, "a fill", func() bool { return len(g.Stats().InFlight) == 1 })
	if in := g.Stats().InFlight[0]; in.Offset != pageOf(7) || in.Length != pageBytes || in.Since.IsZero() {
		t.Errorf("in flight: %+v", in)
	}
	for _, page := range []int64{100, 200} { // present; absent
		if err := l.read(t, page).wait(t); err != nil {
			t.Errorf("page %d: %v", page, err)
		}
	}
	close(gate[pageOf(7)])
	if err := held.wait(t); err != nil {
		t.Error(err)
	}
}

// A failed fill is an I/O error, and the next read asks again.
func TestFailedFill(t *testing.T) {
	l, g, f := watched(t, 1<<20)
	broken := errors.New("no network")
	f.before = func(context.Context, int64, int64) error { return broken }
	stop := serve(t, g, f)
	if err := l.read(t, 5).wait(t); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v, want EIO", err)
	}
	if st := g.Stats(); st.Failed == 0 || st.Fills.Count != 0 {
		t.Errorf("%+v", st)
	}
	stop()
	f.before = nil
	serve(t, g, f)
	if err := l.read(t, 5).wait(t); err != nil {
		t.Error(err)
	}
}

// More readers than slots: the kernel queues.
func TestMoreReadersThanSlots(t *testing.T) {
	l, g, f := watched(t, 4<<20)
	open := make(chan struct{})
	f.before = func(ctx context.Context, _, _ int64) error {
		select {
		case <-open:
		case <-ctx.Done():
		}
		return ctx.Err()
	}
	serve(t, g, f)
	var reads []reading
	for i := range int64(slots + 20) {
		reads = append(reads, l.read(t, 8*i))
	}
	eventually(t, "all slots taken", func() bool { return len(g.Stats().InFlight) == slots && queued(t, g) > 0 })
	close(open)
	for i, r := range reads {
		if err := r.wait(t); err != nil {
			t.Errorf("read %d: %v", i, err)
		}
	}
}

// What Serve has not answered when it ends is answered by the next, with everything that came meanwhile.
func TestServeAgain(t *testing.T) {
	l, g, f := watched(t, 1<<20)
	f.before = gates{pageOf(1): nil, pageOf(2): nil}.before
	stop := serve(t, g, f)
	held := []reading{l.read(t, 1), l.read(t, 2)}
	eventually(t, "two fills", func() bool { return len(g.Stats().InFlight) == 2 })
	stop()
	if n := len(g.Stats().InFlight); n != 0 {
		t.Errorf("%d in flight when nobody serves", n)
	}
	held = append(held, l.read(t, 3))
	eventually(t, "an event in the queue", func() bool { return queued(t, g) > 0 })
	f.before = nil
	serve(t, g, f)
	for i, r := range held {
		if err := r.wait(t); err != nil {
			t.Errorf("read %d: %v", i, err)
		}
	}
	if st := g.Stats(); st.Inherited != 2 || st.Late != 0 {
		t.Errorf("%d inherited, %d late", st.Inherited, st.Late)
	}
}

func TestServeTwice(t *testing.T) {
	_, g, f := watched(t, 1<<20)
	serve(t, g, f)
	eventually(t, "a session", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.current != nil
	})
	if err := g.Serve(t.Context(), f); err == nil {
		t.Error("served twice at the same time")
	}
}

// The kernel asks for whole pages, also where the blob ends within one.
func TestEndOfBlob(t *testing.T) {
	need(t)
	data, err := os.OpenFile(t.TempDir()+"/data", os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer data.Close()
	const size = 3*pageBytes + 100
	must(t, data.Truncate(size))
	g, err := New(data)
	must(t, err)
	defer g.Close()
	asked := make(chan [2]int64, 100)
	serve(t, g, &filler{before: func(_ context.Context, off, n int64) error {
		asked <- [2]int64{off, n}
		return errors.New("not this one")
	}, present: make([]atomic.Bool, 4)})
	r, err := os.Open(data.Name())
	must(t, err)
	defer r.Close()
	if _, err := r.ReadAt(make([]byte, 50), 3*pageBytes+10); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v", err)
	}
	if got, want := <-asked, [2]int64{3 * pageBytes, 100}; got != want {
		t.Errorf("asked for %v, want %v", got, want)
	}
	if n, err := r.ReadAt(make([]byte, 50), size+10*pageBytes); n != 0 || err != io.EOF {
		t.Errorf("behind the end: %d bytes, %v", n, err)
	}
}

// What a self-test has refused is refused, and is no failure.
func TestSelfTestIsNoFailure(t *testing.T) {
	l, g, f := watched(t, 1<<20)
	var failure atomic.Pointer[error]
	f.before = func(context.Context, int64, int64) error { return *failure.Load() }
	serve(t, g, f)
	other := errors.New("made by a test")
	for _, err := range []error{ErrSelfTest, other} {
		failure.Store(&err)
		if err := l.read(t, 3).wait(t); !errors.Is(err, unix.EIO) {
			t.Errorf("got %v, want EIO", err)
		}
		if n := g.Stats().Failed; (n > 0) != (err == other) {
			t.Errorf("%d failures after %q", n, err)
		}
	}
}
