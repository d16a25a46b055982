package main

import (
	"errors"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

func TestParse(t *testing.T) {
	s, err := parse([]string{"-quick", "-peers", "eager,overlayfs", "-images", "scipy", "-dir", "/b"})
	if err != nil {
		t.Fatal(err)
	}
	if s.Rounds != 1 || benchkit.Names(s.peers, peerName) != "eager,overlayfs" || benchkit.Names(s.images, imageName) != "scipy" {
		t.Errorf("settings are %+v", s)
	}
	for _, args := range []string{"-peers soci", "-images scipy,", "-n 0", "word", "-dir /longer/than/sockets/allow"} {
		if _, err := parse(append([]string{"-dir=/b"}, strings.Fields(args)...)); err == nil {
			t.Errorf("%s is accepted", args)
		}
	}
	if _, err := parse([]string{"-help"}); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-help gives %v", err)
	}
}

func TestSentBytes(t *testing.T) {
	const log = `time="2026-11-20T12:55:49Z" level=info msg="response completed" http.request.method=GET
127.0.0.1 - - [20/Nov/2026:12:55:49 +0000] "GET /v2/ HTTP/1.1" 200 2 "" "containerd/2.4.2"
127.0.0.1 - - [20/Nov/2026:12:55:49 +0000] "HEAD /v2/nginx/manifests/gzip HTTP/1.1" 200 400 "" "containerd/2.4.2"
127.0.0.1 - - [20/Nov/2026:12:55:49 +0000] "GET /v2/nginx/manifests/sha256:0e HTTP/1.1" 200 400 "" "containerd/2.4.2"
127.0.0.1 - - [20/Nov/2026:12:55:49 +0000] "GET /v2/nginx/blobs/sha256:c3 HTTP/1.1" 206 10000 "" "containerd/2.4.2"
127.0.0.1 - - [20/Nov/2026:12:55:49 +0000] "GET /v2/nginx/blobs/sha256:ff HTTP/1.1" 404 157 "" "containerd/2.4.2"
127.0.0.1 - - [20/Nov/2026:12:55:49 +0000] "GET /v2/scipy/blobs/sha256:c3 HTTP/1.1" 200 500000 "" "containerd/2.4.2"
`
	if got := sentBytes(log, "nginx"); got != 10400 {
		t.Errorf("%d bytes of nginx, want 10400: the manifest and the part of a blob that were downloaded", got)
	}
}

func TestFirstReady(t *testing.T) {
	answer, err := firstReady(strings.NewReader("warning: slow\nready node v18\nmore\n"))
	if err != nil || answer != "ready node v18" {
		t.Errorf("answer %q, error %v", answer, err)
	}
	if answer, err := firstReady(strings.NewReader("not ready\n")); err == nil {
		t.Errorf("answer %q of a workload that failed", answer)
	}
}

func TestFirstOK(t *testing.T) {
	requests := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if requests++; requests < 3 {
			w.WriteHeader(http.StatusBadGateway)
		}
		w.Write([]byte("page\n"))
	}))
	defer server.Close()
	answer, err := firstOK(t.Context(), server.URL, nil)
	if err != nil || answer != "page" || requests != 3 {
		t.Errorf("answer %q after %d requests, error %v, want the page of the third", answer, requests, err)
	}
	if err := mustRefuse(server.URL); err == nil {
		t.Error("a server that runs already would be measured")
	}
	server.Close()
	if err := mustRefuse(server.URL); err != nil {
		t.Error(err)
	}
	ended := make(chan struct{})
	close(ended)
	if answer, err := firstOK(t.Context(), server.URL, ended); err == nil {
		t.Errorf("answer %q of a container that ended", answer)
	}
}
