package netproxy

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/testca"
)

var blob = bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB

func origin(t *testing.T) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/host" {
			io.WriteString(w, r.Host)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	}))
	t.Cleanup(s.Close)
	return s
}

func newProxy(t *testing.T, target string, opts Options) *Proxy {
	t.Helper()
	p, err := New(target, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func get(t *testing.T, client *http.Client, url, ranges string) (*http.Response, []byte, error) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if ranges != "" {
		req.Header.Set("Range", ranges)
	}
	req.Header.Set("User-Agent", "test")
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, b, err
}

func TestRecord(t *testing.T) {
	p := newProxy(t, origin(t).URL, Options{})
	if _, b, err := get(t, http.DefaultClient, p.URL()+"/v2/a?x=1", "bytes=16-35"); err != nil || !bytes.Equal(b, blob[16:36]) {
		t.Fatalf("read %q, error %v", b, err)
	}
	if _, b, err := get(t, http.DefaultClient, p.URL()+"/host", ""); err != nil || string(b) != p.Addr() {
		t.Fatalf("the target saw host %q, error %v, want the proxy's %s", b, err, p.Addr())
	}
	p.Close()
	requests := p.Requests()
	if len(requests) != 2 {
		t.Fatalf("%d requests recorded, want 2", len(requests))
	}
	got := requests[0]
	if got.RemoteAddr == "" || got.Time.IsZero() {
		t.Errorf("no address or time in %+v", got)
	}
	got.RemoteAddr, got.Time = "", time.Time{}
	want := Request{Method: "GET", Path: "/v2/a", Query: "x=1", Range: "bytes=16-35", Status: 206, Bytes: 20, UserAgent: "test"}
	if got != want {
		t.Errorf("recorded %+v, want %+v", got, want)
	}
}

func TestTLS(t *testing.T) {
	ca, err := testca.New()
	if err != nil {
		t.Fatal(err)
	}
	back := newProxy(t, origin(t).URL, Options{TLS: ca.ServerTLS()})
	front := newProxy(t, back.URL(), Options{TLS: ca.ServerTLS(), Roots: ca.Pool()})
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}}}
	defer client.CloseIdleConnections()
	if _, b, err := get(t, client, front.URL()+"/a", ""); err != nil || !bytes.Equal(b, blob) {
		t.Errorf("%d bytes through two proxies, error %v", len(b), err)
	}
}

// TestKillAfter lets a proxy die in a body: exactly as much arrives as was allowed, and nothing is served afterwards.
func TestKillAfter(t *testing.T) {
	p := newProxy(t, origin(t).URL, Options{})
	if _, _, err := get(t, http.DefaultClient, p.URL()+"/before", ""); err != nil {
		t.Fatal(err)
	}
	p.KillAfter(100_000)
	_, b, err := get(t, http.DefaultClient, p.URL()+"/a", "")
	if err == nil || len(b) != 100_000 || !bytes.Equal(b, blob[:len(b)]) {
		t.Errorf("%d bytes, error %v, want 100000 bytes and an error", len(b), err)
	}
	<-p.Killed()
	if _, _, err := get(t, http.DefaultClient, p.URL()+"/a", ""); err == nil {
		t.Error("a killed proxy answers")
	}
}

func TestReset(t *testing.T) {
	s, err := Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := Reset(r); err != nil {
			t.Error(err)
		}
		panic(http.ErrAbortHandler)
	}), ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, _, err := get(t, http.DefaultClient, s.URL(), ""); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("error %v, want a reset connection", err)
	}
}

func TestBadTarget(t *testing.T) {
	if _, err := New("127.0.0.1:5000", Options{}); err == nil || !strings.Contains(err.Error(), "http://") {
		t.Errorf("error %v, want one with an example", err)
	}
}
