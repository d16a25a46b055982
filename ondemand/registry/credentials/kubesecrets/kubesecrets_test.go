package kubesecrets

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry/credentials/internal/login"
)

// configJSON is a secret of the new type with one key.
func configJSON(name, key, password string) secret {
	auth := base64.StdEncoding.EncodeToString([]byte("u:" + password))
	return secret{"team", name, "kubernetes.io/dockerconfigjson", ".dockerconfigjson", fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, key, auth)}
}

// config is a secret of the old type with one key.
func config(name, key, password string) secret {
	return secret{"team", name, "kubernetes.io/dockercfg", ".dockercfg", fmt.Sprintf(`{%q:{"username":"u","password":%q}}`, key, password)}
}

// start runs secrets with the kubeconfig until the test ends.
func start(t *testing.T, kubeconfig string, log *slog.Logger) *Secrets {
	t.Helper()
	s := New(Options{Kubeconfig: kubeconfig, Log: log})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s
}

func get(t *testing.T, s *Secrets, image, host string, refused bool) string {
	t.Helper()
	_, secret, err := s.Get(t.Context(), image, host, refused)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// waitFor calls done until it is true, or fails the test.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long for: %s", what)
		}
	}
}

func waitForSecret(t *testing.T, s *Secrets, host, want string) {
	t.Helper()
	waitFor(t, fmt.Sprintf("%s of %s", want, host), func() bool { return get(t, s, host+"/team/app:1", host, false) == want })
}

func TestSecretsAreFollowed(t *testing.T) {
	for _, listOnly := range []bool{false, true} {
		t.Run(fmt.Sprintf("listOnly=%t", listOnly), func(t *testing.T) {
			api := newFakeAPI()
			api.listOnly, api.bookmark = listOnly, true
			api.apply(configJSON("before", "a.io", "1"))
			api.apply(secret{"team", "other", "Opaque", ".dockerconfigjson", configJSON("", "opaque.io", "x").value})
			address, _ := api.serve(t, "")
			s := start(t, kubeconfig(t, address), nil)
			waitForSecret(t, s, "a.io", "1")
			api.apply(config("later", "b.io", "2"))
			waitForSecret(t, s, "b.io", "2")
			api.apply(configJSON("before", "a.io", "3"))
			waitForSecret(t, s, "a.io", "3")
			api.remove(config("later", "b.io", "2"))
			waitForSecret(t, s, "b.io", "")
			if got := get(t, s, "opaque.io/app", "opaque.io", false); got != "" {
				t.Error("a secret that is no image pull secret is used")
			}
		})
	}
}

func TestHistoryExpires(t *testing.T) {
	api := newFakeAPI()
	api.listOnly = true
	api.apply(configJSON("kept", "a.io", "1"))
	api.apply(configJSON("gone", "b.io", "2"))
	address, _ := api.serve(t, "")
	s := start(t, kubeconfig(t, address), nil)
	waitForSecret(t, s, "b.io", "2")
	waitFor(t, "the watches", func() bool { _, watches := api.counts(); return watches >= 4 }) // two refused, two that follow
	lists, _ := api.counts()

	api.mu.Lock() // changes that no watch sees
	delete(api.secrets, "team/gone")
	api.secrets["team/new"] = configJSON("new", "c.io", "3")
	api.mu.Unlock()
	api.expire()
	waitForSecret(t, s, "c.io", "3")
	if got := get(t, s, "b.io/team/app", "b.io", false); got != "" {
		t.Error("a secret that was removed meanwhile is still used")
	}
	if now, _ := api.counts(); now <= lists {
		t.Errorf("%d lists, as before", now)
	}
	waitForSecret(t, s, "a.io", "1")
}

func TestServerRestarts(t *testing.T) {
	api := newFakeAPI()
	api.apply(configJSON("s", "a.io", "1"))
	address, stop := api.serve(t, "")
	var log lockedBuffer
	s := start(t, kubeconfig(t, address), slog.New(slog.NewTextHandler(&log, nil)))
	waitForSecret(t, s, "a.io", "1")
	stop()
	waitFor(t, "the warning", func() bool { return strings.Contains(log.String(), "cannot be followed") })
	if got := get(t, s, "a.io/team/app", "a.io", false); got != "1" {
		t.Error("what was known is forgotten when the server is away")
	}
	api.apply(configJSON("s", "a.io", "2"))
	api.serve(t, address)
	waitForSecret(t, s, "a.io", "2")
	waitFor(t, "the all-clear", func() bool { return strings.Contains(log.String(), "followed again") })
	if n := strings.Count(log.String(), "cannot be followed"); n > 2 {
		t.Errorf("%d warnings for two watches:\n%s", n, log.String())
	}
}

func TestPermissionIsGivenLater(t *testing.T) {
	api := newFakeAPI()
	api.forbidden.Store(true)
	api.apply(configJSON("s", "a.io", "1"))
	address, _ := api.serve(t, "")
	var log lockedBuffer
	s := start(t, kubeconfig(t, address), slog.New(slog.NewTextHandler(&log, nil)))
	for _, store := range s.stores {
		waitFor(t, "the warning", func() bool { return strings.Contains(log.String(), "type="+store.secretType) })
	}
	if out := log.String(); !strings.Contains(out, "Forbidden") || strings.Count(out, "level=WARN") != len(s.stores) {
		t.Errorf("log: %s", out)
	}
	api.forbidden.Store(false)
	waitForSecret(t, s, "a.io", "1")
}

func TestConfigurationIsMissing(t *testing.T) {
	var log lockedBuffer
	path := filepath.Join(t.TempDir(), "none")
	s := start(t, path, slog.New(slog.NewTextHandler(&log, nil)))
	waitFor(t, "the warning", func() bool { return strings.Contains(log.String(), path) })
	if got := get(t, s, "a.io/app", "a.io", false); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestBrokenSecretIsNamedAndDoesNotMatter(t *testing.T) {
	api := newFakeAPI()
	broken := configJSON("broken", "a.io", "s3cret")
	broken.value = strings.TrimSuffix(broken.value, "}}")
	api.apply(broken)
	api.apply(configJSON("good", "a.io", "1"))
	address, _ := api.serve(t, "")
	var log lockedBuffer
	s := start(t, kubeconfig(t, address), slog.New(slog.NewTextHandler(&log, nil)))
	waitForSecret(t, s, "a.io", "1")
	if out := log.String(); !strings.Contains(out, "secret=broken") || !strings.Contains(out, "namespace=team") || strings.Contains(out, "s3cret") {
		t.Errorf("log: %s", out)
	}
}

// filled returns secrets as if a cluster had them.
func filled(t *testing.T, have ...secret) *Secrets {
	t.Helper()
	s := New(Options{})
	for _, one := range have {
		for _, store := range s.stores {
			if store.secretType != one.kind {
				continue
			}
			if err := store.Add(&unstructured.Unstructured{Object: one.object(1)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

func TestSeveralSecretsMatch(t *testing.T) {
	s := filled(t, configJSON("b", "r.io", "host, b"), config("a", "r.io", "host, a"), configJSON("z", "r.io/team", "path"),
		configJSON("c", "*.io/team", "pattern"), configJSON("d", "r.io/other", "other path"), configJSON("e", "mirror.io", "mirror"))
	const image = "r.io/team/app:1"
	for i, want := range []string{"path", "host, a", "host, b", "pattern", ""} {
		if got := get(t, s, image, "r.io", i > 0); got != want {
			t.Errorf("after %d refusals: got %q, want %q", i, got, want)
		}
	}
	if got := get(t, s, image, "mirror.io", false); got != "mirror" {
		t.Errorf("for the mirror: got %q", got)
	}
}

func TestStoreRefusesWhatIsNoSecret(t *testing.T) {
	s := New(Options{}).stores[0]
	for name, err := range map[string]error{"Add": s.Add("x"), "Update": s.Update("x"), "Delete": s.Delete("x"), "Replace": s.Replace([]any{"x"}, "1")} {
		if err == nil {
			t.Errorf("%s took a string for a secret", name)
		}
	}
}

// FuzzSecret: no data of a secret makes us panic.
func FuzzSecret(f *testing.F) {
	f.Add([]byte(configJSON("s", "*.r.io/team", "p").value))
	f.Add([]byte(config("s", "https://index.docker.io/v1/", "p").value))
	f.Add([]byte(`{"auths":{"[":{"auth":"dTpw"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, s := range New(Options{}).stores {
			for _, key := range []string{".dockerconfigjson", ".dockercfg"} {
				object := secret{"team", "s", s.secretType, key, string(data)}.object(1)
				if err := s.Replace([]any{&unstructured.Unstructured{Object: object}}, "1"); err != nil {
					t.Error(err)
				}
			}
			s.match(login.Target{Host: "a.r.io:5000", Repository: "team/app"}, nil)
		}
	})
}

// lockedBuffer is a log that may be read while it is written.
type lockedBuffer struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.String()
}
