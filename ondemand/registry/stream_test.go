package registry

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// The reader gets what has come of the first range while the rest of it is still to come.
func TestBytesAreHandedOverAsTheyArrive(t *testing.T) {
	content := big()
	f := newRegistry(t, content, httptest.NewServer)
	more := make(chan struct{})
	f.fail("blobs", first(1, partial(content, 1000, func(w http.ResponseWriter, r *http.Request) {
		<-more
		_, end := requested(r)
		w.Write(content[1000:end])
	})))
	c := newClient(t, Options{StallTimeout: time.Minute})
	r, err := c.Open(t.Context(), f.image(), describes(content))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	head := make([]byte, 1000)
	if _, err := io.ReadFull(r, head); err != nil {
		t.Fatal(err)
	}
	close(more)
	rest, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(append(head, rest...), content) {
		t.Errorf("wrong bytes, %v", err)
	}
	if got, want := r.(interface{ Source() string }).Source(), f.host()+"/library/app"; got != want {
		t.Errorf("source %q, want %q", got, want)
	}
}

// Readers that do not read never keep others from what they wait for, however little memory and however few connections there are.
func TestManyReadersOfLittleMemory(t *testing.T) {
	content := big()
	f := newRegistry(t, content, httptest.NewServer)
	c := newClient(t, Options{Memory: 1, Connections: 2, StallTimeout: time.Minute})
	var idle []io.ReadCloser
	for range 5 {
		r, err := c.Open(t.Context(), f.image(), describes(content))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		idle = append(idle, r)
	}
	var group errgroup.Group
	for range 3 {
		group.Go(func() error { return readAll(t, c, f.image(), content) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if used := c.Stats().BufferedBytes; used > int64(len(idle))*rangeBytes {
		t.Errorf("%d bytes buffered", used)
	}
	got, err := io.ReadAll(idle[0])
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("wrong bytes, %v", err)
	}
}

// The same with hosts that have no ranges: a reader that pauses holds its connection.
func TestManyReadersWithoutRanges(t *testing.T) {
	content := big()
	f := newRegistry(t, content, httptest.NewServer)
	f.fail("blobs", wholeBlob(content))
	c := newClient(t, Options{Memory: 1, Connections: 1, StallTimeout: time.Minute})
	for range 3 {
		r, err := c.Open(t.Context(), f.image(), describes(content))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
	}
	if err := readAll(t, c, f.image(), content); err != nil {
		t.Fatal(err)
	}
}

func TestMemoryIsShared(t *testing.T) {
	m := newMemory(8)
	a := m.open()
	take := func(a *account, n int64) bool { buf, _ := a.try(n); return buf != nil }
	if !take(a, 5) || !take(a, 3) || take(a, 1) {
		t.Error("one account does not get the limit, or more")
	}
	b := m.open()
	if !take(b, 2) || take(b, 1) {
		t.Error("a second one does not get what it waits for, or more")
	}
	a.put(nil, 5)
	if take(a, 2) || !take(b, 2) || take(b, 1) {
		t.Error("not shared equally")
	}
	waiting := make(chan error)
	go func() { _, err := b.get(t.Context(), 2); waiting <- err }()
	a.put(nil, 3)
	a.close()
	if err := <-waiting; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.get(ctx, 8); err == nil {
		t.Error("a context that has ended waits on")
	}
}

// No more connections than allowed, and work in the background has its own.
func TestConnectionsAreBounded(t *testing.T) {
	content := big()
	f := newRegistry(t, content, httptest.NewServer)
	var now, most atomic.Int64
	var mu sync.Mutex
	f.fail("blobs", func(http.ResponseWriter, *http.Request, int) bool {
		n := now.Add(1)
		defer now.Add(-1)
		mu.Lock()
		most.Store(max(most.Load(), n))
		mu.Unlock()
		time.Sleep(5 * time.Millisecond)
		return false
	})
	c := newClient(t, Options{Connections: 3})
	var group errgroup.Group
	for range 4 {
		group.Go(func() error { return readAll(t, c, f.image(), content) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if most.Load() > 3 || most.Load() < 2 {
		t.Errorf("%d requests at a time, want up to 3", most.Load())
	}
}

func TestBackgroundIsPaced(t *testing.T) {
	content := randomBytes(300_000)
	f := newRegistry(t, content, httptest.NewServer)
	c := newClient(t, Options{BackgroundRate: 1})
	ctx, cancel := context.WithTimeout(Background(t.Context()), 100*time.Millisecond)
	defer cancel()
	r, err := c.Open(ctx, f.image(), describes(content))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err == nil || len(got) > pieceBytes {
		t.Errorf("%d bytes at 1 byte/s, %v", len(got), err)
	}
	if err := readAll(t, c, f.image(), content); err != nil {
		t.Errorf("work that is waited for is held up: %v", err)
	}
}

// BenchmarkLoopback compares with one plain connection: go test -bench Loopback.
func BenchmarkLoopback(b *testing.B) {
	content := randomBytes(250 << 20)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	defer srv.Close()
	buf := make([]byte, 256<<10)
	drain := func(b *testing.B, r io.ReadCloser, err error) {
		if err != nil {
			b.Fatal(err)
		}
		defer r.Close()
		if n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{r}, buf); n != int64(len(content)) {
			b.Fatal(n, err)
		}
	}
	b.Run("plain", func(b *testing.B) {
		b.SetBytes(int64(len(content)))
		for b.Loop() {
			resp, err := http.Get(srv.URL)
			if err != nil {
				b.Fatal(err)
			}
			drain(b, resp.Body, nil)
		}
	})
	b.Run("stream", func(b *testing.B) {
		c := New(Options{PlainHTTP: plain})
		defer c.Close()
		desc := describes(content)
		b.SetBytes(int64(len(content)))
		for b.Loop() {
			r, err := c.Open(context.Background(), srv.Listener.Addr().String()+"/library/app:1", desc)
			drain(b, r, err)
		}
	})
}
