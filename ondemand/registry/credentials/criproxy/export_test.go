package criproxy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry/credentials/internal/login"
)

// handed returns what another process has after an import.
func handed(t *testing.T, from *learned) *learned {
	t.Helper()
	b, err := from.export(maxExportBytes)
	if err != nil {
		t.Fatal(err)
	}
	to := newLearned(maxRepositories, from.keep, nil)
	t.Cleanup(to.close)
	if err := to.insert(b); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestExportIsImported(t *testing.T) {
	s := newLearned(10, time.Hour, nil)
	defer s.close()
	for _, l := range []login.Login{{Secret: "old"}, {User: "u", Secret: "p\xff"}} {
		s.put(repositoryNamed("app"), l)
	}
	s.put(repositoryNamed("other"), login.Login{Secret: "token"})
	to := handed(t, handed(t, s)) // over two processes
	for i, want := range []login.Login{{User: "u", Secret: "p\xff"}, {Secret: "old"}} {
		if got := to.get(repositoryNamed("app"), i > 0); got != want {
			t.Errorf("after %d refusals: a wrong credential", i)
		}
	}
	if to.get(repositoryNamed("other"), false).Secret != "token" || to.get(repositoryNamed("none"), false).Known() {
		t.Error("a wrong credential")
	}
	empty := handed(t, newLearned(1, time.Hour, nil))
	if empty.byUse.Len() != 0 || empty.expiry != nil {
		t.Error("something is left of nothing")
	}
}

func TestImportedExpiresByLastUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newLearned(10, time.Hour, nil)
		s.put(repositoryNamed("gone"), login.Login{Secret: "a"})
		time.Sleep(40 * time.Minute)
		s.put(repositoryNamed("unused"), login.Login{Secret: "b"})
		b, err := s.export(maxExportBytes)
		if err != nil {
			t.Fatal(err)
		}
		s.close()
		time.Sleep(30 * time.Minute)
		to := newLearned(10, time.Hour, nil)
		defer to.close()
		if err := to.insert(b); err != nil {
			t.Fatal(err)
		}
		known := func() int {
			to.mu.Lock()
			defer to.mu.Unlock()
			return to.byUse.Len()
		}
		if n := known(); n != 1 {
			t.Errorf("%d repositories are known, want the one that was used", n)
		}
		time.Sleep(31 * time.Minute)
		synctest.Wait()
		if n := known(); n != 0 {
			t.Errorf("%d repositories are known an hour after their last use", n)
		}
	})
}

func TestOwnComesBeforeImported(t *testing.T) {
	s := newLearned(10, time.Hour, nil)
	defer s.close()
	for _, secret := range []string{"1", "2", "3", "4"} {
		s.put(repositoryNamed("app"), login.Login{Secret: secret})
	}
	b, err := s.export(maxExportBytes)
	if err != nil {
		t.Fatal(err)
	}
	to := newLearned(10, time.Hour, nil)
	defer to.close()
	to.put(repositoryNamed("app"), login.Login{Secret: "own"})
	if err := to.insert(b); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"own", "4", "3", "2", ""} {
		if got := to.get(repositoryNamed("app"), i > 0).Secret; got != want {
			t.Errorf("after %d refusals: got %q, want %q", i, got, want)
		}
	}
}

// What is used least is left out when there is too much, whichever process learned it.
func TestExportAndImportAreBounded(t *testing.T) {
	s := newLearned(maxRepositories, time.Hour, nil)
	defer s.close()
	for i := range maxRepositories {
		s.put(repositoryNamed(fmt.Sprint(i)), login.Login{Secret: strings.Repeat("x", 1<<10)})
	}
	s.put(repositoryNamed("long"), login.Login{Secret: strings.Repeat("x", maxFieldBytes+1)})
	b, err := s.export(64 << 10)
	if err != nil || len(b) > 64<<10 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	to := newLearned(10, time.Hour, nil)
	defer to.close()
	to.put(repositoryNamed("own"), login.Login{Secret: "s"})
	if err := to.insert(b); err != nil {
		t.Fatal(err)
	}
	if n := to.byUse.Len(); n != 10 {
		t.Errorf("%d repositories are known", n)
	}
	for name, want := range map[string]bool{"own": true, fmt.Sprint(maxRepositories - 1): true, "long": false, "1": false} {
		if got := to.get(repositoryNamed(name), false).Known(); got != want {
			t.Errorf("%s is known: %t", name, got)
		}
	}
}

func TestChangesAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told atomic.Int32
		s := newLearned(10, 24*time.Hour, func() { told.Add(1) })
		defer s.close()
		expect := func(what string, want int32) {
			t.Helper()
			if got := told.Swap(0); got != want {
				t.Errorf("%s: told %d times, want %d", what, got, want)
			}
		}
		s.put(repositoryNamed("app"), login.Login{Secret: "a"})
		expect("a new credential", 1)
		for range 100 {
			s.get(repositoryNamed("app"), false)
			s.get(repositoryNamed("none"), false)
		}
		expect("many uses", 0)
		time.Sleep(2 * time.Hour)
		for range 100 {
			s.get(repositoryNamed("app"), false)
		}
		expect("uses after some time", 1)
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		expect("expiry", 1)
		if err := s.insert([]byte(`{"version":1}`)); err != nil {
			t.Error(err)
		}
		expect("an import", 0)
	})
}

func TestChangedMayExport(t *testing.T) {
	var proxy *Proxy
	var exported []byte
	proxy, err := New(Options{Address: "/none", Changed: func() { exported, _ = proxy.Export() }})
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	proxy.learn(pullOf("r.io/app:1", &runtime.AuthConfig{Username: "u", Password: "p"}))
	next, err := New(Options{Address: "/none"})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if err := next.Import(exported); err != nil {
		t.Fatal(err)
	}
	if got := get(t, next, "r.io/app:2", "r.io", false); got != (answer{"u", "p"}) {
		t.Error("the next process does not know the credential")
	}
}

func TestImportRefuses(t *testing.T) {
	const login1 = `{"secret":"aHVzaA=="}`
	const one = `{"host":"r.io","repository":"app","used":1,"logins":[` + login1 + `]}`
	for name, text := range map[string]string{
		"nothing":            ``,
		"no JSON":            `hush-hush`,
		"another version":    `{"version":2,"repositories":[]}`,
		"no version":         `{"repositories":[` + one + `]}`,
		"wrong type":         `{"version":1,"repositories":[{"host":"r.io","repository":"app","logins":[{"secret":2718281828}]}]}`,
		"not base64":         `{"version":1,"repositories":[` + strings.Replace(one, "aHVzaA==", "hush-hush", 1) + `]}`,
		"no host":            `{"version":1,"repositories":[` + strings.Replace(one, "r.io", "", 1) + `]}`,
		"no repository":      `{"version":1,"repositories":[` + strings.Replace(one, "app", "", 1) + `]}`,
		"no secret":          `{"version":1,"repositories":[` + strings.Replace(one, "aHVzaA==", "", 1) + `]}`,
		"no credential":      `{"version":1,"repositories":[{"host":"r.io","repository":"app","used":1}]}`,
		"too many":           `{"version":1,"repositories":[` + strings.Repeat(one+",", maxRepositories) + one + `]}`,
		"too long":           `{"version":1,"repositories":[` + one + `]}` + strings.Repeat(" ", maxExportBytes),
		"a second document":  `{"version":1,"repositories":[` + one + `]}{}`,
		"too many for one":   `{"version":1,"repositories":[` + strings.Replace(one, login1, login1+strings.Repeat(","+login1, maxLogins), 1) + `]}`,
		"a credential of 1M": `{"version":1,"repositories":[` + strings.Replace(one, "aHVzaA==", strings.Repeat("aHVzaA==", 1<<17), 1) + `]}`,
	} {
		s := newLearned(10, time.Hour, nil)
		defer s.close()
		err := s.insert([]byte(text))
		if err == nil || s.byUse.Len() > 0 {
			t.Errorf("%s: %v, %d repositories are known", name, err, s.byUse.Len())
			continue
		}
		if strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "2718") {
			t.Errorf("%s: the error shows what must be hidden: %v", name, err)
		}
	}
}

func FuzzImport(f *testing.F) {
	f.Add([]byte(`{"version":1,"repositories":[{"host":"r","repository":"a","used":9999999999,"logins":[{"user":"dQ==","secret":"cA=="}]}]}`))
	f.Add([]byte(`{"version":1,"repositories":[{"host":"r","repository":"a","used":-1,"logins":[{"secret":"cA=="}]}]}`))
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newLearned(3, time.Hour, nil)
		defer s.close()
		if err := s.insert(b); err != nil {
			return
		}
		if n := s.byUse.Len(); n > 3 || n != len(s.known) {
			t.Errorf("%d repositories in order, %d by name", n, len(s.known))
		}
		first, err := s.export(maxExportBytes)
		if err != nil || !json.Valid(first) {
			t.Fatalf("exported %q, %v", first, err)
		}
		second, err := handed(t, s).export(maxExportBytes)
		if err != nil || !bytes.Equal(first, second) {
			t.Errorf("exported %q, and after an import %q, %v", first, second, err)
		}
	})
}
