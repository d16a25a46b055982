package login

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/docker/cli/cli/config/types"
)

// Keyring is a set of credentials, each for a registry or a part of one. It is not changed after it was made.
type Keyring []Entry

// Entry is a credential and the key under which it is valid: host[:port][/path]. Labels of the host may be patterns, and path is
// what repositories begin with: kubelet reads keys the same way.
type Entry struct {
	Key   string
	Login Login
}

// NewKeyring returns the credentials of the "auths" of a docker configuration. An entry without one is left out: docker writes empty
// ones for registries whose credentials are in a credential store. So is one with nothing but a "registrytoken", with which no other
// token can be asked for.
func NewKeyring(auths map[string]types.AuthConfig) Keyring {
	ring := make(Keyring, 0, len(auths))
	for _, key := range slices.Sorted(maps.Keys(auths)) {
		if l := fromAuth(auths[key]); l.Known() {
			ring = append(ring, Entry{Key: cleanKey(key), Login: l})
		}
	}
	// The longer path comes first; so does a name before the patterns for it, because '*' sorts before letters and digits.
	slices.SortStableFunc(ring, func(a, b Entry) int { return strings.Compare(b.Key, a.Key) })
	return ring
}

// fromAuth prefers the identity token: docker writes it beside a user name, without a password.
func fromAuth(a types.AuthConfig) Login {
	if a.IdentityToken != "" {
		return Login{Secret: a.IdentityToken}
	}
	return Login{User: a.Username, Secret: a.Password}
}

// Match returns the entries for t, the most specific key first.
func (k Keyring) Match(t Target) Keyring {
	var found Keyring
	for _, e := range k {
		if e.matches(t) {
			found = append(found, e)
		}
	}
	return found
}

func (e Entry) matches(t Target) bool {
	host, prefix, _ := strings.Cut(e.Key, "/")
	return matchHost(host, t.Host) && strings.HasPrefix(t.Repository, prefix)
}

// matchHost tells whether host is one that the pattern means. Each label of the pattern is matched alone: *.example.com is
// a.example.com, but neither example.com nor a.b.example.com. Ports must be equal.
func matchHost(pattern, host string) bool {
	if pattern == host {
		return true
	}
	patternName, patternPort, _ := strings.Cut(pattern, ":")
	name, port, _ := strings.Cut(host, ":")
	patterns, labels := strings.Split(patternName, "."), strings.Split(name, ".")
	if patternPort != port || len(patterns) != len(labels) {
		return false
	}
	for i, p := range patterns {
		if ok, err := path.Match(p, labels[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

// cleanKey makes host[:port][/path] of a key. Docker's keys may be URLs, and may end with the version of the registry's API.
func cleanKey(key string) string {
	_, repository, _ := strings.Cut(withoutScheme(key), "/")
	for _, version := range []string{"v1", "v2"} {
		if repository == version {
			repository = ""
		}
		repository = strings.TrimPrefix(repository, version+"/")
	}
	if repository = strings.TrimSuffix(repository, "/"); repository == "" {
		return Host(key)
	}
	return Host(key) + "/" + repository
}
