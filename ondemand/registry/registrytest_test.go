package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fault handles a request in place of the registry, and returns true, or lets it pass. n counts the requests for the same kind of object.
type fault func(w http.ResponseWriter, r *http.Request, n int) bool

// fakeRegistry serves one repository, "library/app", in one of the many ways in which registries do.
type fakeRegistry struct {
	*httptest.Server
	blobs     map[string][]byte // by digest
	manifests map[string][]byte

	mu       sync.Mutex
	faults   map[string]fault // by "blobs" and "manifests"
	count    map[string]int
	requests []*http.Request
}

// newRegistry starts a registry that holds content as a blob and as the manifest of tag 1. It ends with the test.
func newRegistry(t *testing.T, content []byte, start func(http.Handler) *httptest.Server) *fakeRegistry {
	t.Helper()
	dgst := digest.FromBytes(content).String()
	manifest := []byte(`{"schemaVersion":2}`)
	f := &fakeRegistry{
		blobs:     map[string][]byte{dgst: content},
		manifests: map[string][]byte{"1": manifest, digest.FromBytes(manifest).String(): manifest},
		faults:    map[string]fault{},
		count:     map[string]int{},
	}
	f.Server = start(f)
	t.Cleanup(f.Server.Close)
	return f
}

func (f *fakeRegistry) fail(kind string, with fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults[kind] = with
}

func (f *fakeRegistry) host() string { return strings.SplitN(f.URL, "://", 2)[1] }

func (f *fakeRegistry) image() string { return f.host() + "/library/app:1" }

func (f *fakeRegistry) seen() []*http.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*http.Request{}, f.requests...)
}

func (f *fakeRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/library/app/"), "/")
	f.mu.Lock()
	f.requests = append(f.requests, r.Clone(context.Background()))
	n := f.count[kind]
	f.count[kind]++
	failing := f.faults[kind]
	f.mu.Unlock()
	if failing != nil && failing(w, r, n) {
		return
	}
	content, ok := f.blobs[name]
	if kind == "manifests" {
		content, ok = f.manifests[name]
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(content).String())
	}
	if !ok {
		http.Error(w, "no such thing", http.StatusNotFound)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}

// first applies a fault to the first n requests of a kind.
func first(n int, with fault) fault {
	return func(w http.ResponseWriter, r *http.Request, i int) bool { return i < n && with(w, r, i) }
}

// from applies a fault to all requests but the first n.
func from(n int, with fault) fault {
	return func(w http.ResponseWriter, r *http.Request, i int) bool { return i >= n && with(w, r, i) }
}

func status(code int, headers ...string) fault {
	return func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(code)
		return true
	}
}

// wholeBlob answers 200 with everything, whatever was asked for.
func wholeBlob(content []byte) fault {
	return func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		_, _ = w.Write(content)
		return true
	}
}

// requested returns the range of a request, [off, end).
func requested(r *http.Request) (off, end int64) {
	_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &off, &end)
	return off, end + 1
}

// partial answers 206 with n bytes of the range, and then does something to the connection.
func partial(content []byte, n int64, then func(http.ResponseWriter, *http.Request)) fault {
	return func(w http.ResponseWriter, r *http.Request, _ int) bool {
		off, end := requested(r)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, end-1, len(content)))
		w.Header().Set("Content-Length", fmt.Sprint(end-off))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(content[off:min(end, off+n)])
		w.(http.Flusher).Flush()
		then(w, r)
		return true
	}
}

func hangUp(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func reset(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	_ = conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
}

func silence(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func resets(w http.ResponseWriter, r *http.Request, _ int) bool { reset(w, r); return true }

func stalls(w http.ResponseWriter, r *http.Request, _ int) bool { silence(w, r); return true }

func lying(header, value string) fault {
	return func(w http.ResponseWriter, r *http.Request, _ int) bool {
		off, end := requested(r)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, end-1, bigBytes))
		w.Header().Set(header, value)
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(make([]byte, end-off))
		return true
	}
}

// bigBytes is the size of the blob of most tests: five ranges, the last one short.
const bigBytes = 4*rangeBytes + 12345

var big = sync.OnceValue(func() []byte { return randomBytes(bigBytes) })

func randomBytes(n int) []byte {
	content := make([]byte, n)
	r := rand.NewChaCha8([32]byte{7})
	_, _ = r.Read(content)
	return content
}

func describes(content []byte) ocispec.Descriptor {
	return ocispec.Descriptor{Digest: digest.FromBytes(content), Size: int64(len(content))}
}

func plain(string) bool { return true }

// newClient returns a client that is not patient. It checks at the end of the test that nothing is left of what was read.
func newClient(t *testing.T, o Options) *Client {
	t.Helper()
	before := runtime.NumGoroutine()
	if o.PlainHTTP == nil {
		o.PlainHTTP = plain
	}
	if o.StallTimeout == 0 {
		o.StallTimeout = 500 * time.Millisecond
	}
	c := New(o)
	c.policy = policy{rounds: 4, first: time.Millisecond, most: 5 * time.Millisecond, budget: 5 * time.Second}
	t.Cleanup(func() {
		c.Close()
		if s := c.Stats(); s.Readers != 0 || s.BufferedBytes != 0 || c.memory.free != nil {
			t.Errorf("left: %d readers with %d bytes", s.Readers, s.BufferedBytes)
		}
		for name, h := range c.hosts.byName {
			if !h.slots.TryAcquire(int64(c.options.Connections)) {
				t.Errorf("host %s: a connection was not given back", name)
			}
		}
		waitFor(t, "goroutines to end", func() bool {
			http.DefaultClient.CloseIdleConnections()
			return runtime.NumGoroutine() <= before+serverGoroutines
		})
	})
	return c
}

// serverGoroutines is how many the servers of a test may still need for connections that they have not noticed to be closed.
const serverGoroutines = 8

// waitFor waits as long as the test may run.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for range 1000 {
		if done() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	stacks := make([]byte, 1<<16)
	t.Fatalf("waited in vain for %s\n%s", what, stacks[:runtime.Stack(stacks, true)])
}

func readAll(t *testing.T, c *Client, image string, content []byte) error {
	t.Helper()
	r, err := c.Open(t.Context(), image, describes(content))
	if err != nil {
		return err
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err == nil && !bytes.Equal(got, content) {
		t.Fatalf("wrong bytes: %d of %d, first difference at %d", len(got), len(content), difference(got, content))
	}
	if !bytes.HasPrefix(content, got) {
		t.Fatalf("wrong bytes before the error %v, from %d on", err, difference(got, content))
	}
	return err
}

func difference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// tokenServer gives out tokens that a guard accepts for as long as they live.
type tokenServer struct {
	*httptest.Server
	user, secret string
	life         time.Duration
	realm        string // of the challenge; "" is the server itself

	mu     sync.Mutex
	tokens map[string]time.Time
	given  int
}

func newTokenServer(t *testing.T, user, secret string, life time.Duration) *tokenServer {
	ts := &tokenServer{user: user, secret: secret, life: life, tokens: map[string]time.Time{}}
	ts.Server = httptest.NewServer(ts)
	t.Cleanup(ts.Close)
	return ts
}

func (ts *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, secret, basic := r.BasicAuth()
	if !basic {
		user, secret = r.PostFormValue("username"), r.PostFormValue("password")
	}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	scope := r.FormValue("scope")
	if user != ts.user || secret != ts.secret || scope != "repository:library/app:pull" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	ts.given++
	token := fmt.Sprintf("token-%d", ts.given)
	ts.tokens[token] = time.Now().Add(ts.life)
	// The server says that tokens live long, so that the client finds out by a 401.
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": 3600})
}

// guard lets nothing pass without a living token.
func (ts *tokenServer) guard(w http.ResponseWriter, r *http.Request, _ int) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if time.Now().Before(ts.tokens[token]) {
		return false
	}
	realm := ts.URL + "/token"
	if ts.realm != "" {
		realm = ts.realm
	}
	w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="test"`, realm))
	w.WriteHeader(http.StatusUnauthorized)
	return true
}

// store is what a registry redirects to. It accepts signatures from valid on.
type store struct {
	*httptest.Server
	mu    sync.Mutex
	valid int // signatures below are refused
	seen  []http.Header
}

func newStore(t *testing.T, content []byte, refusal int, start func(http.Handler) *httptest.Server) *store {
	s := &store{}
	s.Server = start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r.Header.Clone())
		valid := s.valid
		s.mu.Unlock()
		var signature int
		_, _ = fmt.Sscan(r.URL.Query().Get("signature"), &signature)
		if signature < valid {
			w.WriteHeader(refusal)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	t.Cleanup(s.Close)
	return s
}

// sign redirects to the store with a signature that is the number of the request.
func (s *store) sign(w http.ResponseWriter, r *http.Request, n int) bool {
	http.Redirect(w, r, s.URL+"/blob?"+url.Values{"signature": {fmt.Sprint(n)}, "secret": {"hunter2"}}.Encode(), http.StatusTemporaryRedirect)
	return true
}

func rangeHeader(off, end int64) string { return fmt.Sprintf("bytes=%d-%d", off, end-1) }

func contentRangeHeader(off, end int64, size int) string {
	return fmt.Sprintf("bytes %d-%d/%d", off, end-1, size)
}
