package registry

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
)

// vault is credentials that change when they are refused. It records what it was asked.
type vault struct {
	mu      sync.Mutex
	logins  [][2]string // the next one after each refusal
	asked   []string
	refused int
}

func (v *vault) Get(_ context.Context, image, host string, refused bool) (string, string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked = append(v.asked, image+" "+host)
	if refused {
		v.refused++
	}
	l := v.logins[min(v.refused, len(v.logins)-1)]
	return l[0], l[1], nil
}

func basic(user, secret string) fault {
	return func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if u, s, ok := r.BasicAuth(); ok && u == user && s == secret {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
}

func TestAuthorisation(t *testing.T) {
	content := big()
	good, bad := [2]string{"me", "hunter2"}, [2]string{"me", "hunter1"}
	tokens := newTokenServer(t, "me", "hunter2", time.Minute)
	brief := newTokenServer(t, "me", "hunter2", 30*time.Millisecond)
	anonymous := newTokenServer(t, "", "", time.Minute)
	denied := func(w http.ResponseWriter, r *http.Request, n int) bool {
		return basic("me", "hunter2")(w, r, n) || status(403)(w, r, n)
	}
	for name, test := range map[string]struct {
		guard   fault
		logins  [][2]string
		refused int
		is      func(error) bool
	}{
		"basic":                        {guard: basic("me", "hunter2"), logins: [][2]string{good}},
		"basic, first refused":         {guard: basic("me", "hunter2"), logins: [][2]string{bad, good}, refused: 1},
		"basic, always refused":        {guard: basic("me", "hunter2"), logins: [][2]string{bad}, refused: 1, is: errdefs.IsUnauthorized},
		"basic, none known":            {guard: basic("me", "hunter2"), logins: [][2]string{{}}, is: saying("there are none")},
		"basic, no others known":       {guard: basic("me", "hunter2"), logins: [][2]string{bad, {}}, refused: 1, is: saying("there are no others")},
		"token":                        {guard: tokens.guard, logins: [][2]string{good}},
		"token, first refused":         {guard: tokens.guard, logins: [][2]string{bad, good}, refused: 1},
		"token, always refused":        {guard: tokens.guard, logins: [][2]string{bad}, refused: 1, is: errdefs.IsUnauthorized},
		"token, anonymous":             {guard: anonymous.guard, logins: [][2]string{{}}},
		"token that expires mid blob":  {guard: slowly(brief.guard), logins: [][2]string{good}},
		"no permission, twice refused": {guard: denied, logins: [][2]string{good}, refused: 1, is: errdefs.IsPermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			f := newRegistry(t, content, httptest.NewServer)
			f.fail("blobs", test.guard)
			v := &vault{logins: test.logins}
			c := newClient(t, Options{Credentials: v, Connections: 1})
			err := readAll(t, c, f.image(), content)
			if test.is == nil && err != nil || test.is != nil && !test.is(err) {
				t.Fatalf("got %v", err)
			}
			if v.refused != test.refused {
				t.Errorf("told of %d refusals, want %d", v.refused, test.refused)
			}
			if len(v.asked) > 0 && v.asked[0] != f.image()+" "+f.host() {
				t.Errorf("asked for %q", v.asked[0])
			}
			if err != nil && strings.Contains(err.Error(), "hunter") {
				t.Errorf("error shows a secret: %v", err)
			}
		})
	}
	if brief.given < 2 {
		t.Errorf("the token did not expire: %d given", brief.given)
	}
}

// saying tells whether an error is one of authorisation that says what to do about it.
func saying(text string) func(error) bool {
	return func(err error) bool { return errdefs.IsUnauthorized(err) && strings.Contains(err.Error(), text) }
}

// slowly has tokens expire between two requests.
func slowly(f fault) fault {
	return func(w http.ResponseWriter, r *http.Request, n int) bool {
		time.Sleep(40 * time.Millisecond)
		if r.Header.Get("Authorization") != "" && n%3 != 0 {
			return false
		}
		return f(w, r, n)
	}
}

func TestTokenServerOverPlainHTTPIsRefused(t *testing.T) {
	content := randomBytes(100)
	tokens := newTokenServer(t, "me", "hunter2", time.Minute)
	f, dir := newTLSRegistry(t, content)
	f.fail("blobs", tokens.guard)
	c := newClient(t, Options{HostsDir: dir, Credentials: &vault{logins: [][2]string{{"me", "hunter2"}}}})
	if err := readAll(t, c, f.image(), content); !errdefs.IsPermissionDenied(err) {
		t.Errorf("got %v", err)
	}
	if tokens.given != 0 {
		t.Error("the secret was sent in the clear")
	}
}

// A signed URL is asked for once for all ranges, again when it is refused, and gives up when that does not help.
func TestSignedURLs(t *testing.T) {
	content := big()
	for _, refusal := range []int{400, 401, 403, 404} {
		f := newRegistry(t, content, httptest.NewServer)
		s := newStore(t, content, refusal, httptest.NewServer)
		f.fail("blobs", func(w http.ResponseWriter, r *http.Request, n int) bool {
			return basic("me", "hunter2")(w, r, n) || s.sign(w, r, n)
		})
		c := newClient(t, Options{Credentials: &vault{logins: [][2]string{{"me", "hunter2"}}}})
		if err := readAll(t, c, f.image(), content); err != nil {
			t.Fatal(err)
		}
		if n := len(f.seen()); n != 2 {
			t.Errorf("the registry was asked %d times, want 2: without and with a password", n)
		}
		s.mu.Lock()
		s.valid = len(f.seen())
		s.mu.Unlock()
		if err := readAll(t, c, f.image(), content); err != nil {
			t.Errorf("after the URL expired with %d: %v", refusal, err)
		}
		if n := len(f.seen()); n != 3 {
			t.Errorf("the registry was asked %d times, want 3", n)
		}
		s.mu.Lock()
		s.valid = 1000
		s.mu.Unlock()
		err := readAll(t, c, f.image(), content)
		if !errdefs.IsPermissionDenied(err) && !errdefs.IsNotFound(err) || strings.Contains(err.Error(), "signature") {
			t.Errorf("got %v", err)
		}
		if slices.ContainsFunc(s.seen, func(h http.Header) bool { return h.Get("Authorization") != "" }) {
			t.Error("the store got the password of the registry")
		}
	}
}

// Many ranges that find out at the same time that a token is needed ask for one.
func TestOneTokenForAll(t *testing.T) {
	content := big()
	tokens := newTokenServer(t, "me", "hunter2", time.Minute)
	f := newRegistry(t, content, httptest.NewServer)
	var together sync.WaitGroup
	together.Add(4)
	f.fail("blobs", func(w http.ResponseWriter, r *http.Request, n int) bool {
		if n < 4 {
			together.Done()
			together.Wait()
		}
		return tokens.guard(w, r, n)
	})
	c := newClient(t, Options{Connections: 4, Credentials: &vault{logins: [][2]string{{"me", "hunter2"}}}})
	var group errgroup.Group
	for i := range 4 {
		group.Go(func() error {
			return c.ReadAt(t.Context(), f.image(), describes(content), make([]byte, 1000), int64(i)*1000)
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if tokens.given != 1 {
		t.Errorf("%d tokens", tokens.given)
	}
}
