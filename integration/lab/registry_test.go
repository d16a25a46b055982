package lab

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/faultproxy"
)

// TestRegistry pulls from each variant of the registry, which only those who may can do, and looks at what was recorded.
func TestRegistry(t *testing.T) {
	for _, variant := range []Registry{
		{TLS: true},
		{Auth: AuthBasic, User: "me", Password: "my secret"},
		{TLS: true, Auth: AuthBasic},
		{Auth: AuthToken},
		{TLS: true, Auth: AuthToken},
	} {
		t.Run(fmt.Sprintf("tls=%v %s", variant.TLS, variant.Auth), func(t *testing.T) {
			variant.Record = true
			l := New(t, Options{NoDaemon: true, Registry: variant, Images: []string{"busybox-gzip"}})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if n := len(l.RegistryRequests()); n != 0 {
				t.Errorf("%d requests recorded before the first pull: pushes are to go round the proxy", n)
			}
			tokens := l.TokensIssued()
			pull := []string{"image", "pull", "--hosts-dir", l.HostsDir(), "--snapshotter", "overlayfs", l.Ref("busybox-gzip")}
			if variant.Auth != AuthNone {
				if _, err := l.Ctr(ctx, pull...); err == nil {
					t.Error("pulled without credentials")
				}
				user, password := credentials(t, l)
				pull = append(pull, "--user", user+":"+password)
			}
			if _, err := l.Ctr(ctx, pull...); err != nil {
				t.Fatal(err)
			}
			if got := l.TokensIssued() > tokens; got != (variant.Auth == AuthToken) {
				t.Errorf("token issued by the pull: %v", got)
			}
			var blobs int
			for _, r := range l.RegistryRequests() {
				if strings.Contains(r.Path, "/blobs/") && r.Status == http.StatusOK && r.Method == http.MethodGet {
					blobs++
					if r.Authorized != (variant.Auth != AuthNone) || r.Bytes == 0 || !strings.HasPrefix(r.UserAgent, "containerd/") {
						t.Errorf("recorded %+v", r)
					}
				}
			}
			if blobs != 2 {
				t.Errorf("%d blobs recorded, want config and layer: %+v", blobs, l.RegistryRequests())
			}
		})
	}
}

// credentials reads what is meant for clients.
func credentials(t *testing.T, l *Lab) (user, password string) {
	t.Helper()
	text, err := os.ReadFile(l.DockerConfig())
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Auths map[string]struct{ Auth []byte }
	}
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	user, password, _ = strings.Cut(string(config.Auths[l.Host].Auth), ":")
	return user, password
}

// TestTokenLifetime waits until a token no longer opens the registry.
func TestTokenLifetime(t *testing.T) {
	l := New(t, Options{NoDaemon: true, Registry: Registry{Auth: AuthToken, TokenLifetime: 2 * time.Second}, Images: []string{"busybox-gzip"}})
	const repository = "busybox"
	get := func(url string, edit func(*http.Request)) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		edit(req)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	user, password := credentials(t, l)
	resp := get(l.registry.tokens.URL()+"?scope=repository:"+repository+":pull", func(r *http.Request) { r.SetBasicAuth(user, password) })
	defer resp.Body.Close()
	var answer struct{ Token string }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	manifest := func() int {
		resp := get(l.RegistryURL()+"/v2/"+repository+"/tags/list", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+answer.Token) })
		defer resp.Body.Close()
		return resp.StatusCode
	}
	if status := manifest(); status != http.StatusOK {
		t.Fatalf("status %d with a new token, want 200", status)
	}
	for deadline := time.Now().Add(30 * time.Second); manifest() != http.StatusUnauthorized; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a token of 2 s opens the registry after 30 s")
		}
	}
}

// TestProxies pulls through proxies in front of a registry with TLS and tokens: a mirror, and one that redirects to signed URLs.
func TestProxies(t *testing.T) {
	l := New(t, Options{NoDaemon: true, Registry: Registry{TLS: true, Auth: AuthToken}, Images: []string{"busybox-gzip"}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	mirror, err := l.Mirror()
	if err != nil {
		t.Fatal(err)
	}
	bad, err := faultproxy.New(l.RegistryURL(), faultproxy.Options{SignedURLs: time.Minute, TLS: l.CA().ServerTLS(), Roots: l.CA().Pool()})
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close()
	user, password := credentials(t, l)
	for _, host := range []string{mirror.Addr(), bad.Addr()} {
		if err := l.WriteHosts(host, fmt.Sprintf("server = \"https://%s\"\nca = %q\n", host, l.CAFile())); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Ctr(ctx, "content", "fetch", "--hosts-dir", l.HostsDir(), "--user", user+":"+password, l.RefAt(host, "busybox-gzip")); err != nil {
			t.Error(err)
		}
		// The next fetch starts with nothing.
		if _, err := l.Ctr(ctx, "image", "rm", "--sync", l.RefAt(host, "busybox-gzip")); err != nil {
			t.Error(err)
		}
	}
	if len(mirror.Requests()) == 0 {
		t.Error("the mirror has recorded nothing")
	}
	if n := bad.LeakedAuthorization(); n != 0 {
		t.Errorf("%d requests took credentials to the storage", n)
	}
	mirror.Kill()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: l.CA().Pool()}}}
	if _, err := client.Get(mirror.URL() + "/v2/"); err == nil {
		t.Error("a killed mirror answers")
	}
}
