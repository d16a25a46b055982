package login

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/docker/cli/cli/config/types"
)

func TestHost(t *testing.T) {
	for address, want := range map[string]string{
		"docker.io":                   "docker.io",
		"index.docker.io":             "docker.io",
		"registry-1.docker.io":        "docker.io",
		"https://index.docker.io/v1/": "docker.io",
		"GHCR.io":                     "ghcr.io",
		"http://127.0.0.1:5000/v2/":   "127.0.0.1:5000",
		"ghcr.io/team":                "ghcr.io",
		"docker.io.example.com":       "docker.io.example.com",
		"[::1]:5000":                  "[::1]:5000",
	} {
		if got := Host(address); got != want {
			t.Errorf("Host(%q) = %q, want %q", address, got, want)
		}
	}
}

func TestFor(t *testing.T) {
	for _, test := range []struct {
		image, host string
		want        Target
	}{
		{"docker.io/library/nginx:1", "registry-1.docker.io", Target{"docker.io", "library/nginx"}},
		{"nginx", "", Target{"docker.io", "library/nginx"}},
		{"docker.io/library/nginx:1", "mirror:5000", Target{"mirror:5000", "library/nginx"}},
		{"host:5000/a/b@sha256:" + strings.Repeat("0", 64), "host:5000", Target{"host:5000", "a/b"}},
	} {
		got, err := For(test.image, test.host)
		if err != nil || got != test.want {
			t.Errorf("For(%q, %q) = %v, %v, want %v", test.image, test.host, got, err, test.want)
		}
	}
	if _, err := For("not an image", "host"); err == nil {
		t.Error("For accepted what is no reference")
	}
}

func TestKeyringMatch(t *testing.T) {
	for _, test := range []struct {
		name       string
		keys       []string
		host, repo string
		want       []string // keys, in this order
	}{
		{"exact", []string{"ghcr.io", "quay.io"}, "ghcr.io", "a/b", []string{"ghcr.io"}},
		{"no suffix of a host", []string{"ghcr.io"}, "evil-ghcr.io", "a", nil},
		{"no host that only begins so", []string{"ghcr.io"}, "ghcr.io.evil.com", "a", nil},
		{"docker's key of Docker Hub", []string{"https://index.docker.io/v1/"}, "docker.io", "library/nginx", []string{"https://index.docker.io/v1/"}},
		{"version of the API", []string{"https://r.io/v2/", "http://r.io/v1"}, "r.io", "a", []string{"http://r.io/v1", "https://r.io/v2/"}},
		{"longest path first", []string{"r.io", "r.io/team/app", "r.io/team"}, "r.io", "team/app", []string{"r.io/team/app", "r.io/team", "r.io"}},
		{"other path", []string{"r.io/team"}, "r.io", "other/app", nil},
		{"wildcard", []string{"*.r.io/team"}, "a.r.io", "team/app", []string{"*.r.io/team"}},
		{"wildcard is one label", []string{"*.r.io"}, "a.b.r.io", "x", nil},
		{"wildcard needs a label", []string{"*.r.io"}, "r.io", "x", nil},
		{"wildcard within a label", []string{"r*.io", "r[1-3].io"}, "r2.io", "x", []string{"r[1-3].io", "r*.io"}},
		{"name before wildcard", []string{"*.r.io", "a.r.io"}, "a.r.io", "x", []string{"a.r.io", "*.r.io"}},
		{"port", []string{"r.io", "r.io:5000", "*.io:5000"}, "r.io:5000", "x", []string{"r.io:5000", "*.io:5000"}},
		{"broken pattern", []string{"[.io"}, "a.io", "x", nil},
		{"IPv6", []string{"[::1]:5000"}, "[::1]:5000", "x", []string{"[::1]:5000"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			auths := map[string]types.AuthConfig{"unrelated.io": {}}
			for _, key := range test.keys {
				auths[key] = types.AuthConfig{Username: key, Password: "p"}
			}
			var got []string
			for _, e := range NewKeyring(auths).Match(Target{test.host, test.repo}) {
				got = append(got, e.Login.User)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestKeyringForms(t *testing.T) {
	for _, test := range []struct {
		auth types.AuthConfig
		want []Login
	}{
		{types.AuthConfig{Username: "u", Password: "p"}, []Login{{"u", "p"}}},
		{types.AuthConfig{Username: "u", IdentityToken: "t"}, []Login{{"", "t"}}},
		{types.AuthConfig{RegistryToken: "bearer"}, nil},
		{types.AuthConfig{}, nil},
	} {
		var got []Login
		for _, e := range NewKeyring(map[string]types.AuthConfig{"r.io": test.auth}) {
			got = append(got, e.Login)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%d credentials of %q, want %d", len(got), test.auth.Username, len(test.want))
		}
	}
}

func TestDecodeBasic(t *testing.T) {
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for _, test := range []struct {
		auth string
		want Login
		ok   bool
	}{
		{encode("u:p:q"), Login{"u", "p:q"}, true},
		{encode("u:p\x00\x00"), Login{"u", "p"}, true},
		{encode("s3cret"), Login{}, false},
		{encode(":s3cret"), Login{}, false},
		{"s3cret!", Login{}, false},
	} {
		got, err := DecodeBasic(test.auth)
		if got != test.want || (err == nil) != test.ok {
			t.Errorf("DecodeBasic(%q): wrong answer, error %v", test.auth, err)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
}

func TestLoginHides(t *testing.T) {
	l := Login{User: "u", Secret: "s3cret"}
	for _, shown := range []string{fmt.Sprint(l), fmt.Sprintf("%+v", l), fmt.Sprintf("%#v", l), fmt.Sprintf("%v", []Login{l})} {
		if strings.Contains(shown, "s3cret") {
			t.Errorf("shows the secret: %s", shown)
		}
	}
}
