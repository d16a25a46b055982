package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// A host that sends a few bytes now and then, or a few with each answer, is no better than one that sends none.
func TestTooFewBytesAreNoProgress(t *testing.T) {
	content := big()
	for name, fault := range map[string]fault{
		"byte after byte":       partial(content, 0, trickle),
		"a byte, then a reset":  partial(content, 1, reset),
		"a byte with each 206":  answersOf(content, 1),
		"many bytes, then none": partial(content, 100, silence),
	} {
		t.Run(name, func(t *testing.T) {
			for _, mirrors := range []int{0, 1} {
				origin, dir := newRegistry(t, content, httptest.NewServer), ""
				image, asked := origin.image(), origin.seen
				origin.fail("blobs", fault)
				if mirrors > 0 {
					mirror := newRegistry(t, content, httptest.NewServer)
					mirror.fail("blobs", fault)
					dir = writeHosts(t, upstream, fmt.Sprintf("server = %q\n[host.%q]\n", origin.URL, mirror.URL))
					image = upstream + "/library/app:1"
					asked = func() []*http.Request { return append(mirror.seen(), origin.seen()...) }
				}
				c := newClient(t, Options{HostsDir: dir, StallTimeout: 100 * time.Millisecond})
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				err := c.ReadAt(ctx, image, describes(content), make([]byte, 1<<20), 0)
				if !errdefs.IsUnavailable(err) {
					t.Errorf("got %v", err)
				}
				if most := c.policy.rounds * (mirrors + 1); len(asked()) > most {
					t.Errorf("%d requests, want up to %d", len(asked()), most)
				}
			}
		})
	}
}

// trickle sends a byte every 20 ms for as long as somebody reads.
func trickle(w http.ResponseWriter, r *http.Request) {
	for r.Context().Err() == nil {
		_, _ = w.Write([]byte{0})
		w.(http.Flusher).Flush()
		time.Sleep(20 * time.Millisecond)
	}
}

// answersOf sends n bytes of whatever is asked for.
func answersOf(content []byte, n int64) fault {
	return func(w http.ResponseWriter, r *http.Request, _ int) bool {
		off, _ := requested(r)
		w.Header().Set("Content-Range", contentRangeHeader(off, off+n, len(content)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(content[off : off+n])
		return true
	}
}

// A mirror that lacks a blob is not asked for each of its ranges.
func TestMirrorThatRefusesIsAskedOnce(t *testing.T) {
	content := big()
	for _, code := range []int{401, 403, 404} {
		mirror, origin := newRegistry(t, content, httptest.NewServer), newRegistry(t, content, httptest.NewServer)
		mirror.fail("blobs", status(code))
		dir := writeHosts(t, upstream, fmt.Sprintf("server = %q\n[host.%q]\n", origin.URL, mirror.URL))
		if err := readAll(t, newClient(t, Options{HostsDir: dir}), upstream+"/library/app:1", content); err != nil {
			t.Fatal(err)
		}
		if n := len(mirror.seen()); n != 1 {
			t.Errorf("a mirror that answers %d was asked %d times", code, n)
		}
	}
}

// challenging asks for a token of the server at realm.
func challenging(realm string) fault {
	return status(http.StatusUnauthorized, "WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="test"`, realm))
}

func TestTokenServers(t *testing.T) {
	content := randomBytes(1000)
	var sent, written atomic.Int64
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Header.Get("Authorization") != "" || strings.Contains(string(body), "hunter2") {
			sent.Add(1)
		}
		if r.URL.Path == "/again" {
			http.Redirect(w, r, "/", http.StatusTemporaryRedirect)
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer thief.Close()
	for name, test := range map[string]struct {
		serve http.HandlerFunc
		is    func(error) bool
	}{
		"never ends": {func(w http.ResponseWriter, r *http.Request) {
			chunk := []byte(strings.Repeat("a", 1<<20))
			_, _ = io.WriteString(w, `{"token":"`)
			for range 1 << 10 {
				if _, err := w.Write(chunk); err != nil {
					return
				}
				written.Add(int64(len(chunk)))
			}
			_, _ = io.WriteString(w, `","access_token":"x"}`)
		}, errdefs.IsUnavailable},
		"does not answer": {func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		}, errdefs.IsUnavailable},
		"redirects the password to another host": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, thief.URL, http.StatusTemporaryRedirect)
		}, errdefs.IsUnavailable},
		"redirects the login to another host, twice": {func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				http.NotFound(w, r)
				return
			}
			http.Redirect(w, r, thief.URL+"/again", http.StatusTemporaryRedirect)
		}, errdefs.IsUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(test.serve)
			defer server.Close()
			f := newRegistry(t, content, httptest.NewServer)
			f.fail("blobs", challenging(server.URL))
			c := newClient(t, Options{StallTimeout: 300 * time.Millisecond, Credentials: &vault{logins: [][2]string{{"me", "hunter2"}}}})
			c.policy.rounds = 2
			err := readAll(t, c, f.image(), content)
			if !test.is(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			if n := c.Stats().Hosts[f.host()].Failures[string(kindToken)]; n != int64(c.policy.rounds) {
				t.Errorf("%d failures of the token server", n)
			}
			checkError(t, err, f.host(), describes(content).Digest.String())
		})
	}
	if n := written.Load(); n > 16<<20 {
		t.Errorf("%d bytes of a token", n)
	}
	if sent.Load() > 0 {
		t.Error("another host than the token server got the password")
	}
}

// containerd asks localhost in the clear if it does not speak TLS. Other hosts get no password that way.
func TestLocalhostDoesNotWeakenOthers(t *testing.T) {
	content := randomBytes(1000)
	var stolen atomic.Bool
	eavesdropper := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		stolen.Store(r.Header.Get("Authorization") != "" || strings.Contains(string(body), "hunter2"))
	}))
	defer eavesdropper.Close()
	f := newRegistry(t, content, httptest.NewServer)
	f.fail("blobs", challenging(strings.Replace(eavesdropper.URL, "http:", "https:", 1)))
	c := New(Options{Credentials: &vault{logins: [][2]string{{"me", "hunter2"}}}})
	defer c.Close()
	c.policy.rounds = 1
	if err := readAll(t, c, f.image(), content); err == nil || stolen.Load() {
		t.Errorf("the password was sent in the clear: %v, %v", stolen.Load(), err)
	}
}

// Each step of an answer may be slow, but not one after the other.
func TestSlowRedirects(t *testing.T) {
	content := randomBytes(1000)
	f := newRegistry(t, content, httptest.NewServer)
	f.fail("blobs", func(w http.ResponseWriter, r *http.Request, n int) bool {
		select {
		case <-r.Context().Done():
		case <-time.After(200 * time.Millisecond):
		}
		http.Redirect(w, r, fmt.Sprintf("%s?hop=%d", r.URL.Path, n), http.StatusTemporaryRedirect)
		return true
	})
	c := newClient(t, Options{StallTimeout: 300 * time.Millisecond})
	c.policy.rounds = 1
	if err := readAll(t, c, f.image(), content); !errdefs.IsUnavailable(err) {
		t.Errorf("got %v", err)
	}
	if n := len(f.seen()); n > 4 {
		t.Errorf("%d hops of 200 ms each", n)
	}
}

// A store behind a redirect knows a signed URL, and may say it.
func TestMessagesOfStoresAreNotShown(t *testing.T) {
	content := randomBytes(1000)
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusConflict)
		_, _ = fmt.Fprintf(w, `{"errors":[{"code":"BUSY","message":"%s %s"}]}`, r.Method, r.URL)
	}))
	defer store.Close()
	f := newRegistry(t, content, httptest.NewServer)
	f.fail("blobs", status(http.StatusTemporaryRedirect, "Location", store.URL+"/blob?signature=hunter2"))
	err := readAll(t, newClient(t, Options{}), f.image(), content)
	if !errdefs.IsFailedPrecondition(err) || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "409") {
		t.Errorf("got %v", err)
	}
}
