package registry

import (
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// writeHosts writes a hosts.toml for registry.example.
func writeHosts(t *testing.T, registry, content string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if i := strings.LastIndex(registry, ":"); i > 0 {
		registry = registry[:i] + "_" + registry[i+1:] + "_"
	}
	if err := os.MkdirAll(filepath.Join(dir, registry), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, registry, "hosts.toml"), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

const upstream = "registry.example"

func TestMirrors(t *testing.T) {
	content := big()
	for name, test := range map[string]struct {
		mirror, origin fault
		is             func(error) bool
	}{
		"mirror has it":             {origin: status(500)},
		"mirror lacks it":           {mirror: status(404)},
		"mirror refuses":            {mirror: status(401)},
		"mirror fails":              {mirror: status(500)},
		"mirror resets":             {mirror: resets},
		"mirror stalls":             {mirror: first(4, stalls)},
		"mirror is throttled":       {mirror: status(429, "Retry-After", "30")},
		"mirror dies in mid body":   {mirror: partial(content, 100_001, reset)},
		"mirror dies after a range": {mirror: from(1, partial(content, 500_001, hangUp))},
		"mirror without ranges dies": {mirror: first(1, func(w http.ResponseWriter, r *http.Request, _ int) bool {
			w.Header().Set("Content-Length", fmt.Sprint(bigBytes))
			w.Write(content[:3_000_000])
			hangUp(w, r)
			return true
		})},
		"mirror lies about the size":        {mirror: wholeBlob(content[:100])},
		"origin without ranges takes over":  {mirror: from(1, resets), origin: wholeBlob(content)},
		"both lack it":                      {mirror: status(404), origin: status(404), is: errdefs.IsNotFound},
		"mirror lacks it, origin refuses":   {mirror: status(404), origin: status(401), is: errdefs.IsUnauthorized},
		"mirror lacks it, origin fails":     {mirror: status(404), origin: status(502), is: errdefs.IsUnavailable},
		"mirror refuses, origin without it": {mirror: status(403), origin: status(404), is: errdefs.IsPermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			mirror, origin := newRegistry(t, content, httptest.NewServer), newRegistry(t, content, httptest.NewServer)
			mirror.fail("blobs", test.mirror)
			origin.fail("blobs", test.origin)
			dir := writeHosts(t, upstream, fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\"]\n", origin.URL, mirror.URL))
			c := newClient(t, Options{HostsDir: dir})
			err := readAll(t, c, upstream+"/library/app:1", content)
			if test.is == nil && err != nil || test.is != nil && !test.is(err) {
				t.Fatalf("got %v", err)
			}
			if err != nil {
				checkError(t, err, mirror.host(), "blob")
				checkError(t, err, origin.host(), describes(content).Digest.String())
			}
			for _, r := range mirror.seen() {
				if r.URL.Query().Get("ns") != upstream {
					t.Fatalf("request to a mirror without its registry: %s", r.URL)
				}
			}
		})
	}
}

// A mirror that is down is asked first five times, and last from then on.
func TestBreakerPrefersHostsThatAnswer(t *testing.T) {
	content := randomBytes(1000)
	mirror, origin := newRegistry(t, content, httptest.NewServer), newRegistry(t, content, httptest.NewServer)
	mirror.fail("blobs", status(503))
	dir := writeHosts(t, upstream, fmt.Sprintf("server = %q\n[host.%q]\n", origin.URL, mirror.URL))
	c := newClient(t, Options{HostsDir: dir})
	for range 2 * breakerFailures {
		if err := readAll(t, c, upstream+"/library/app:1", content); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(mirror.seen()); n != breakerFailures {
		t.Errorf("the mirror was asked %d times, want %d", n, breakerFailures)
	}
	if s := c.Stats().Hosts[mirror.host()]; s.Breaker != "open" || s.Failures["server"] != breakerFailures {
		t.Errorf("counted %+v", s)
	}
	origin.fail("blobs", status(404))
	mirror.fail("blobs", nil)
	if err := readAll(t, c, upstream+"/library/app:1", content); err != nil {
		t.Errorf("an open host is not asked at all: %v", err)
	}
}

// A mirror that does not answer at all holds up one range, and not each.
func TestSilentMirrorIsAskedOnce(t *testing.T) {
	content := big()
	mirror, origin := newRegistry(t, content, httptest.NewServer), newRegistry(t, content, httptest.NewServer)
	mirror.fail("blobs", stalls)
	dir := writeHosts(t, upstream, fmt.Sprintf("server = %q\n[host.%q]\n", origin.URL, mirror.URL))
	if err := readAll(t, newClient(t, Options{HostsDir: dir}), upstream+"/library/app:1", content); err != nil {
		t.Fatal(err)
	}
	if n := len(mirror.seen()); n != 1 {
		t.Errorf("the mirror was asked %d times", n)
	}
}

// newTLSRegistry returns a registry whose hosts.toml has its CA and a header for it.
func newTLSRegistry(t *testing.T, content []byte) (*fakeRegistry, string) {
	t.Helper()
	f := newRegistry(t, content, httptest.NewTLSServer)
	dir := writeHosts(t, f.host(), fmt.Sprintf("server = %q\nca = \"ca.pem\"\n[header]\n  x-pass = \"hunter2\"\n", f.URL))
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(dir, entries[0].Name(), "ca.pem"), ca, 0o644); err != nil {
		t.Fatal(err)
	}
	return f, dir
}

func TestTLS(t *testing.T) {
	content := big()
	f, dir := newTLSRegistry(t, content)
	t.Run("CA and headers from hosts.toml", func(t *testing.T) {
		if err := readAll(t, newClient(t, Options{HostsDir: dir}), f.image(), content); err != nil {
			t.Fatal(err)
		}
		for _, r := range f.seen() {
			if r.Header.Get("X-Pass") != "hunter2" {
				t.Fatal("a request without the header of hosts.toml")
			}
		}
	})
	t.Run("unknown CA", func(t *testing.T) {
		none := writeHosts(t, f.host(), fmt.Sprintf("server = %q\n", f.URL))
		c := newClient(t, Options{HostsDir: none})
		err := readAll(t, c, f.image(), content)
		if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("got %v", err)
		}
		if n := c.Stats().Hosts[f.host()].Failures["tls"]; n != 1 {
			t.Errorf("%d attempts, want 1", n)
		}
	})
	t.Run("redirect to http", func(t *testing.T) {
		s := newStore(t, content, 403, httptest.NewServer)
		f.fail("blobs", s.sign)
		err := readAll(t, newClient(t, Options{HostsDir: dir}), f.image(), content)
		if !errors.Is(err, errDowngrade) || len(s.seen) > 0 {
			t.Errorf("got %v", err)
		}
	})
	t.Run("headers are not redirected", func(t *testing.T) {
		s := newStore(t, content, 403, httptest.NewTLSServer) // httptest has one certificate
		f.fail("blobs", s.sign)
		if err := readAll(t, newClient(t, Options{HostsDir: dir}), f.image(), content); err != nil {
			t.Fatal(err)
		}
		for _, h := range s.seen {
			if h.Get("X-Pass") != "" {
				t.Fatal("the store got the header of the registry")
			}
		}
	})
}

func TestRefusedConnection(t *testing.T) {
	gone := newRegistry(t, nil, httptest.NewServer)
	gone.Close()
	c := newClient(t, Options{})
	err := readAll(t, c, gone.image(), big())
	if !errdefs.IsUnavailable(err) {
		t.Errorf("got %v", err)
	}
	if n := c.Stats().Hosts[gone.host()].Failures["connect"]; n != int64(c.policy.rounds) {
		t.Errorf("%d attempts, want %d", n, c.policy.rounds)
	}
}

// Without any configuration a registry on localhost is asked in the clear if it does not speak TLS.
func TestLocalhost(t *testing.T) {
	content := randomBytes(1000)
	for _, start := range []func(http.Handler) *httptest.Server{httptest.NewServer, httptest.NewTLSServer} {
		f := newRegistry(t, content, start)
		c := New(Options{HostsDir: filepath.Join(t.TempDir(), "missing")})
		defer c.Close()
		if err := readAll(t, c, f.image(), content); err != nil {
			t.Error(err)
		}
	}
}

// A redirect of a registry on localhost to itself is authorised too, though it names another scheme than was asked for first.
func TestLocalhostRedirectsToItself(t *testing.T) {
	content := randomBytes(1000)
	f := newRegistry(t, content, httptest.NewServer)
	f.fail("blobs", func(w http.ResponseWriter, r *http.Request, n int) bool {
		if basic("me", "hunter2")(w, r, n) || r.URL.RawQuery != "" {
			return r.Header.Get("Authorization") == ""
		}
		http.Redirect(w, r, r.URL.Path+"?again", http.StatusTemporaryRedirect)
		return true
	})
	c := New(Options{Credentials: &vault{logins: [][2]string{{"me", "hunter2"}}}})
	defer c.Close()
	if err := readAll(t, c, f.image(), content); err != nil {
		t.Error(err)
	}
}

func TestIPv6(t *testing.T) {
	testenv.Need(t, testenv.IPv6)
	listener, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	content := randomBytes(1000)
	f := newRegistry(t, content, func(h http.Handler) *httptest.Server {
		s := httptest.NewUnstartedServer(h)
		s.Listener.Close()
		s.Listener = listener
		s.Start()
		return s
	})
	f.fail("blobs", basic("me", "hunter2"))
	v := &vault{logins: [][2]string{{"me", "hunter2"}}}
	if err := readAll(t, newClient(t, Options{Credentials: v}), f.image(), content); err != nil || v.asked[0] != f.image()+" "+f.host() {
		t.Errorf("asked for %q: %v", v.asked, err)
	}
}

// Headers of hosts.toml, in whatever case, are not sent beside those of a request.
func TestHeadersAreNotSentTwice(t *testing.T) {
	content := randomBytes(1000)
	f := newRegistry(t, content, httptest.NewServer)
	dir := writeHosts(t, f.host(), fmt.Sprintf("server = %q\n[header]\n  authorization = \"Basic eA==\"\n  range = \"bytes=0-0\"\n", f.URL))
	f.fail("blobs", basic("me", "hunter2"))
	c := newClient(t, Options{HostsDir: dir, Credentials: &vault{logins: [][2]string{{"me", "hunter2"}}}})
	if err := readAll(t, c, f.image(), content); err != nil {
		t.Fatal(err)
	}
	for i, r := range f.seen() {
		if len(r.Header["Authorization"]) != 1 || len(r.Header["Range"]) != 1 || i == 0 && r.Header.Get("Authorization") != "Basic eA==" {
			t.Errorf("request %d: %v", i, r.Header)
		}
	}
}

func TestBreaker(t *testing.T) {
	now := time.Unix(0, 0)
	b := &breaker{log: slog.New(slog.DiscardHandler), now: func() time.Time { return now }}
	expect := func(state string, ready bool) {
		t.Helper()
		if got := b.state(); got != state {
			t.Errorf("%s, want %s", got, state)
		}
		if got := b.ready(); got != ready {
			t.Errorf("ready is %v", got)
		}
	}
	reset, stall := passing(kindBroken, "reset"), passing(kindStalled, "stall")
	for range breakerFailures {
		expect("closed", true)
		b.failed(reset)
	}
	expect("open", false)
	now = now.Add(breakerPause)
	expect("half-open", true)
	expect("half-open", false) // one is trying
	b.failed(reset)
	b.failed(reset) // began before
	now = now.Add(2*breakerPause - 1)
	expect("open", false)
	now = now.Add(1)
	expect("half-open", true)
	now = now.Add(breakerMost)
	expect("half-open", true) // the one who tried has not said how it went
	b.worked()
	expect("closed", true)
	b.failed(&failure{kind: kindThrottled, after: time.Minute, err: errDowngrade})
	expect("open", false)
	b.worked()
	b.failed(stall)
	expect("open", false)
	for range 10 {
		now = now.Add(breakerMost)
		expect("half-open", true)
		b.failed(stall)
	}
	now = now.Add(breakerMost - 1)
	expect("open", false)
}
