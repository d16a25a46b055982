package main

import (
	"context"
	"errors"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

func TestParse(t *testing.T) {
	s, err := parse([]string{"-quick", "-only", "pull", "-peers", "eager,overlayfs", "-images", "scipy", "-dir", "/b"})
	if err != nil {
		t.Fatal(err)
	}
	if s.rounds != 1 || !s.pull || s.convert || allNames(s.peers, peerName) != "eager,overlayfs" || allNames(s.images, imageName) != "scipy" {
		t.Errorf("settings are %+v", s)
	}
	for _, args := range []string{"-peers stargz", "-images scipy,", "-only run", "-n 0", "word", "-dir /longer/than/sockets/allow"} {
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

func TestAllocated(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const size = 1 << 20
	counted := write("a/file", size)
	write("a/except/file", 4*size)
	hole := write("a/hole", 0)
	if err := errors.Join(os.Link(counted, filepath.Join(dir, "a/link")), os.Truncate(hole, 64*size)); err != nil {
		t.Fatal(err)
	}
	if _, err := syncDisk(dir); err != nil { // blocks are allocated late
		t.Fatal(err)
	}
	got, err := allocated(filepath.Join(dir, "a/except"), filepath.Join(dir, "a"), filepath.Join(dir, "missing"))
	if err != nil || got < size || got > size+size/2 {
		t.Errorf("allocated %d, error %v, want a little more than %d: the file once, no holes, nothing that is left out", got, err, size)
	}
}

func TestShell(t *testing.T) {
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	if err := os.WriteFile(in, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := shell(t.Context(), `cat <"$IN" | cat >"$OUT"`, in, out); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(out); err != nil || string(b) != "text" {
		t.Errorf("output %q, error %v", b, err)
	}
	if err := shell(t.Context(), `echo why >&2; false | cat >"$OUT"`, in, out); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("a program that fails before the pipe gives %v", err)
	}
}

// TestWorkshop shows that each use gets an empty file system, and that nothing is left.
func TestWorkshop(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.Tool("mkfs.ext4"))
	dir := filepath.Join(t.TempDir(), "work")
	const size = 64 << 20
	w, err := openWorkshop(t.Context(), dir, size)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := openWorkshop(t.Context(), dir, size); err == nil {
		second.close()
		t.Fatal("two benchmarks share a directory")
	}
	failed := errors.New("failed")
	for range 2 {
		err := w.withFreshDisk(t.Context(), func(fs string) error {
			if mounted, err := fsbackend.Mounted(fs); err != nil || !mounted {
				t.Errorf("%s is mounted: %v, error %v", fs, mounted, err)
			}
			name := filepath.Join(fs, "file")
			if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the file of the use before is there (%v)", err)
			}
			return errors.Join(failed, os.WriteFile(name, []byte("x"), 0o600))
		})
		if !errors.Is(err, failed) {
			t.Errorf("error is %v, want that of the use", err)
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.withFreshDisk(cancelled, func(string) error { return nil }); err == nil {
		t.Error("a cancelled benchmark goes on")
	}
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there (%v)", dir, err)
	}
	if points, err := fsbackend.MountsBelow(filepath.Dir(dir)); err != nil || len(points) > 0 {
		t.Errorf("still mounted: %q, error %v", points, err)
	}
}
