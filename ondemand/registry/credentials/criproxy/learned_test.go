package criproxy

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry/credentials/internal/login"
)

func repositoryNamed(name string) login.Target { return login.Target{Host: "r.io", Repository: name} }

func TestLearnedExpiresUnused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newLearned(10, time.Hour, nil)
		defer s.close()
		s.put(repositoryNamed("used"), login.Login{Secret: "a"})
		s.put(repositoryNamed("unused"), login.Login{Secret: "b"})
		for range 4 {
			time.Sleep(30 * time.Minute)
			if !s.get(repositoryNamed("used"), false).Known() {
				t.Fatal("a credential in use was dropped")
			}
		}
		s.mu.Lock()
		held := s.byUse.Len()
		s.mu.Unlock()
		if held != 1 {
			t.Errorf("%d credentials are held, want the one in use", held)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if s.get(repositoryNamed("used"), false).Known() {
			t.Error("a credential that is not in use any more was kept")
		}
		s.put(repositoryNamed("again"), login.Login{Secret: "c"})
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if s.get(repositoryNamed("again"), false).Known() {
			t.Error("nothing expires after everything had once")
		}
	})
}

func TestLearnedIsBounded(t *testing.T) {
	s := newLearned(3, time.Hour, nil)
	defer s.close()
	for i := range 4 {
		s.put(repositoryNamed(fmt.Sprint(i)), login.Login{Secret: "s"})
		s.get(repositoryNamed("0"), false)
	}
	for name, want := range map[string]bool{"0": true, "1": false, "2": true, "3": true} {
		if got := s.get(repositoryNamed(name), false).Known(); got != want {
			t.Errorf("repository %s known: %t, want %t", name, got, want)
		}
	}
}

func TestLearnedKeepsTheLastFew(t *testing.T) {
	s := newLearned(3, time.Hour, nil)
	defer s.close()
	for _, secret := range []string{"1", "2", "3", "4", "5", "3"} {
		s.put(repositoryNamed("app"), login.Login{Secret: secret})
	}
	for i, want := range []string{"3", "5", "4", "2", ""} {
		if got := s.get(repositoryNamed("app"), i > 0).Secret; got != want {
			t.Errorf("after %d refusals: got %q, want %q", i, got, want)
		}
	}
}

func TestLearnedAfterClose(t *testing.T) {
	s := newLearned(3, time.Hour, nil)
	s.put(repositoryNamed("app"), login.Login{Secret: "a"})
	s.close()
	s.put(repositoryNamed("late"), login.Login{Secret: "b"})
	if s.get(repositoryNamed("app"), false).Known() || s.get(repositoryNamed("late"), false).Known() {
		t.Error("credentials are held after close")
	}
}
