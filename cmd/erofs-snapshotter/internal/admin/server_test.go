package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// serveStatus runs a server on a unix socket until the test ends or stop is called, which waits for the server.
func serveStatus(t *testing.T, o Options) (address string, stop func() error) {
	t.Helper()
	address = filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	o.Log = slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, o) }()
	stopped := false
	stop = func() error {
		stopped = true
		cancel()
		return <-served
	}
	t.Cleanup(func() {
		if !stopped {
			if err := stop(); err != nil {
				t.Error(err)
			}
		}
	})
	return address, stop
}

func returning(s Status, err error) func(context.Context) (Status, error) {
	return func(context.Context) (Status, error) { return s, err }
}

func TestStatusOverSocket(t *testing.T) {
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	want := Status{
		Version: "v1", Started: began, Root: "/root",
		Layers: []Layer{
			{Instance: "i1", Digest: "sha256:1", DiffID: "sha256:2", Kind: "erofs", State: Complete, DiskBytes: 5, Source: "r.example/a", References: 2, Created: began, Mounted: true},
			{Instance: "i2", Kind: "erofs", State: Building, Work: &Work{BlobBytes: 9, DoneBytes: 3, Started: began, Waiters: 1}},
		},
		Pulls:     []Pull{{Image: "a", Namespace: "n", Manifest: "sha256:3", Started: began, Layers: []PullLayer{{Digest: "sha256:1", BlobBytes: 9, State: Fetching}}}},
		Fallbacks: map[string]Fallback{"digest": {Count: 1, Time: began, Image: "a", Cause: "c"}},
		Cache:     Cache{DiskBytes: 5, KeptBytes: 1, KeepLimitBytes: 8},
		Registry:  map[string]Host{"r.example": {Requests: 4, Retries: 1, Failures: 1, FetchedBytes: 12, Breaker: "closed"}},
	}
	address, _ := serveStatus(t, Options{Status: returning(want, nil)})
	got, err := NewClient(address).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.Format != Format || got.Time.IsZero() {
		t.Errorf("format %d, time %s", got.Format, got.Time)
	}
	want.Format, want.Time = got.Format, got.Time
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestClientErrors(t *testing.T) {
	failing, _ := serveStatus(t, Options{Status: returning(Status{}, errors.New("the store is closed"))})
	other, _ := serveStatus(t, Options{})
	dead := filepath.Join(t.TempDir(), "dead.sock")
	l, err := net.Listen("unix", dead)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	for _, test := range []struct {
		name, address string
		want          []string
		notRunning    bool
	}{
		{"absent", filepath.Join(t.TempDir(), "no.sock"), []string{"no.sock", "systemctl start", "--config"}, true},
		{"left by a dead daemon", dead, []string{"dead.sock", "systemctl start"}, true},
		{"provider fails", failing, []string{failing, "500", "the store is closed"}, false},
		{"not our server", other, []string{other, "knows no status", "admin.address"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := NewClient(test.address).Status(t.Context())
			if err == nil || errors.Is(err, ErrNotRunning) != test.notRunning {
				t.Fatalf("error %v", err)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
		})
	}
}

func TestClientWithoutPermission(t *testing.T) {
	c := NewClient("/run/x.sock")
	err := c.explain(fmt.Errorf("get: %w", &net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", os.ErrPermission)}))
	if !strings.Contains(err.Error(), "/run/x.sock") || !strings.Contains(err.Error(), "ask as root") {
		t.Error(err)
	}
}

func TestPaths(t *testing.T) {
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "some metrics") })
	all, _ := serveStatus(t, Options{Status: returning(Status{}, nil), Metrics: metrics, Pprof: true})
	few, _ := serveStatus(t, Options{Metrics: metrics})
	for _, test := range []struct {
		address, method, path, body string
		code                        int
		want                        string
	}{
		{all, "GET", "/v1/status", "", 200, `"format":1,`},
		{all, "GET", "/v1/status", "", 200, `"layers":[],"pulls":[],`},
		{all, "GET", "/metrics", "", 200, "some metrics"},
		{all, "GET", "/debug/pprof/", "", 200, "goroutine"},
		{all, "GET", "/debug/pprof/cmdline", "", 200, ""},
		{all, "POST", "/v1/status", "", 405, ""},
		{all, "GET", "/v1/status", "a body", 413, "with a body"},
		{all, "GET", "/", "", 404, ""},
		{few, "GET", "/metrics", "", 200, "some metrics"},
		{few, "GET", "/v1/status", "", 404, ""},
		{few, "GET", "/debug/pprof/", "", 404, ""},
	} {
		t.Run(test.method+" "+test.path, func(t *testing.T) {
			request, err := http.NewRequestWithContext(t.Context(), test.method, "http://x"+test.path, strings.NewReader(test.body))
			if err != nil {
				t.Fatal(err)
			}
			response, err := NewClient(test.address).http.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			if err != nil || response.StatusCode != test.code || !strings.Contains(string(body), test.want) {
				t.Errorf("%s, error %v: %s", response.Status, err, body)
			}
		})
	}
}

func TestStopLetsRequestsEnd(t *testing.T) {
	asked, goOn := make(chan struct{}), make(chan struct{})
	address, stop := serveStatus(t, Options{Status: func(ctx context.Context) (Status, error) {
		close(asked)
		<-goOn
		return Status{Version: "v9"}, ctx.Err()
	}})
	answered := make(chan error, 1)
	go func() {
		s, err := NewClient(address).Status(t.Context())
		if err == nil && s.Version != "v9" {
			err = fmt.Errorf("got %+v", s)
		}
		answered <- err
	}()
	<-asked
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	for { // the listener goes first
		if _, err := os.Stat(address); err != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	close(goOn)
	if err := <-answered; err != nil {
		t.Error(err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestStopCutsOffWhoStays(t *testing.T) {
	asked := make(chan struct{})
	address, stop := serveStatus(t, Options{Status: func(ctx context.Context) (Status, error) {
		close(asked)
		<-ctx.Done() // comes when the connection is closed
		return Status{}, ctx.Err()
	}})
	answered := make(chan error, 1)
	go func() {
		_, err := NewClient(address).Status(t.Context())
		answered <- err
	}()
	<-asked
	if err := stop(); err != nil {
		t.Error(err)
	}
	if err := <-answered; err == nil {
		t.Error("there was an answer")
	}
}

func TestListenerFails(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := Serve(t.Context(), l, Options{Log: slog.New(slog.DiscardHandler)}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v", err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, test := range []struct{ answer, want string }{
		{``, "no status"},
		{`<html>`, "no status"},
		{`{}`, "format 0"},
		{`{"format": 2, "layers": "other"}`, "format 2, this program knows 1"},
		{`{"format": 1, "layers": "other"}`, "no status"},
	} {
		if _, err := decode([]byte(test.answer)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q", test.answer, err, test.want)
		}
	}
	if _, err := decode([]byte(`{"format": 1, "version": "v1", "later": {}}`)); err != nil {
		t.Errorf("a field of a later version: %v", err)
	}
}
