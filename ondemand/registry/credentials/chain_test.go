package credentials

import (
	"context"
	"errors"
	"strings"
	"testing"
)

const image, host = "r.io/team/app:1", "r.io"

// said is a source that says the same to everybody, refused or not.
type said struct {
	secret string
	err    error
}

func (s said) Get(context.Context, string, string, bool) (user, secret string, err error) {
	if s.secret == "" {
		return "", "", s.err
	}
	return "user", s.secret, s.err
}

// several is a source that has another answer after a refusal.
type several struct{ secrets []string }

func (s *several) Get(_ context.Context, _, _ string, refused bool) (user, secret string, err error) {
	if refused {
		s.secrets = s.secrets[1:]
	}
	if len(s.secrets) == 0 {
		return "", "", nil
	}
	return "user", s.secrets[0], nil
}

func ask(t *testing.T, s Source, refused bool) string {
	t.Helper()
	_, secret, err := s.Get(t.Context(), image, host, refused)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

func TestChainAsksInTurn(t *testing.T) {
	chain := Chain(said{}, said{secret: "a"}, &several{secrets: []string{"b1", "b2"}}, said{secret: "a"}, said{secret: "c"})
	for i, want := range []string{"a", "b1", "b2", "c", ""} {
		if got := ask(t, chain, i > 0); got != want {
			t.Errorf("after %d refusals: got %q, want %q", i, got, want)
		}
	}
	if got := ask(t, chain, false); got != "a" {
		t.Errorf("a new request: got %q, want %q", got, "a")
	}
}

func TestChainGoesOnAfterAnError(t *testing.T) {
	broken := errors.New("broken file")
	if got := ask(t, Chain(said{err: broken}, said{secret: "a"}), false); got != "a" {
		t.Errorf("got %q, want %q", got, "a")
	}
	if _, _, err := Chain(said{err: broken}, said{}).Get(t.Context(), image, host, false); !errors.Is(err, broken) {
		t.Errorf("got error %v, want %v", err, broken)
	}
}

func TestChainOfNothingIsAnonymous(t *testing.T) {
	if got := ask(t, Chain(), false); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestChainRefusesWhatIsNoImage(t *testing.T) {
	_, _, err := Chain(said{secret: "a"}).Get(t.Context(), "no image", host, false)
	if err == nil || !strings.Contains(err.Error(), "no image") {
		t.Errorf("got error %v", err)
	}
}
