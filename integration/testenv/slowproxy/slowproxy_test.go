package slowproxy

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

func newProxy(t *testing.T, target string, opts Options) *Proxy {
	t.Helper()
	p, err := New(target, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// TestCarries moves bodies over four connections at once, and shows the rate that was reached.
func TestCarries(t *testing.T) {
	const connections = 4
	blob := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(blob) }))
	defer origin.Close()
	p := newProxy(t, origin.Listener.Addr().String(), Options{RoundTrip: 10 * time.Millisecond, BitsPerSecond: 200_000_000})
	start := time.Now()
	var clients sync.WaitGroup
	for range connections {
		clients.Go(func() {
			resp, err := http.Get("http://" + p.Addr())
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if b, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(b, blob) {
				t.Errorf("%d bytes, error %v, want %d", len(b), err, len(blob))
			}
		})
	}
	clients.Wait()
	took := time.Since(start)
	if got, least := p.Downstream(), int64(connections*len(blob)); got < least || got > least+connections*1000 {
		t.Errorf("%d bytes downstream, want %d and a little for headers", got, least)
	}
	if p.Upstream() == 0 || p.Connections() != connections {
		t.Errorf("%d bytes upstream on %d connections, want some on %d", p.Upstream(), p.Connections(), connections)
	}
	t.Logf("%d bytes in %v: %.1f Mbit/s", p.Downstream(), took, float64(p.Downstream())*8/1e6/took.Seconds())
}

// TestLink computes with the line alone, without a clock that anybody waits for.
func TestLink(t *testing.T) {
	l := link{bitsPerSecond: 8_000_000} // a byte per microsecond
	start := time.Now()
	var leaves time.Time
	for range 1000 {
		leaves = l.send(10_000)
	}
	// 10 MB take 10 s, less what an idle line makes up for, and more by the time that the loop took.
	if got := leaves.Sub(start); got < 10*time.Second-burst || got > 10*time.Second+time.Since(start) {
		t.Errorf("10 MB have left after %v, want 10s", got)
	}
	if got := (&link{}).send(1 << 30); time.Until(got) > 0 {
		t.Errorf("a line without a bound takes until %v", got)
	}
}

// TestHalfClose lets a client end its side first and still receive the answer, and Close break a connection that waits.
func TestHalfClose(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				question, _ := io.ReadAll(c)
				c.Write(bytes.ToUpper(question))
			}()
		}
	}()
	p := newProxy(t, listener.Addr().String(), Options{RoundTrip: time.Millisecond, BitsPerSecond: 1_000_000})
	answered, waiting := dial(t, p), dial(t, p)
	if _, err := answered.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := answered.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(answered); err != nil || string(answer) != "HELLO" {
		t.Errorf("answer %q, error %v", answer, err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if n, err := waiting.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes of a connection that was closed", n)
	}
}

func dial(t *testing.T, p *Proxy) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}
