package login

import (
	"fmt"
	"testing"
)

var target = Target{Host: "r.io", Repository: "app"}

// choose asks m for one of the secrets.
func choose(m *Memory, t Target, refused bool, secrets ...string) string {
	return m.Choose(t, refused, len(secrets), func(i int, _ bool) Login { return Login{Secret: secrets[i]} }).Secret
}

func TestMemory(t *testing.T) {
	type step struct {
		refused bool
		secrets []string
		want    string
	}
	for name, steps := range map[string][]step{
		"the first that is known": {{false, []string{"", "b", "c"}, "b"}},
		"each once, then nothing": {
			{false, []string{"a", "b"}, "a"},
			{true, []string{"a", "b"}, "b"},
			{true, []string{"a", "b"}, ""},
		},
		"what works is given again": {
			{false, []string{"a", "b"}, "a"},
			{true, []string{"a", "b"}, "b"},
			{false, []string{"a", "b"}, "b"},
		},
		"all refused: the next request starts over": {
			{false, []string{"a"}, "a"},
			{true, []string{"a"}, ""},
			{false, []string{"a"}, "a"},
		},
		"a changed one counts at once": {
			{false, []string{"a", "b"}, "a"},
			{true, []string{"a", "b"}, "b"},
			{false, []string{"a2", "b"}, "a2"},
			{true, []string{"a2", "b"}, "b"},
		},
		"the one that was good is gone": {
			{false, []string{"a", "b"}, "a"},
			{true, []string{"a", "b"}, "b"},
			{false, []string{"a"}, "a"},
		},
		"anonymous was refused": {
			{false, nil, ""},
			{true, nil, ""},
			{true, []string{"a"}, "a"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var m Memory
			for i, s := range steps {
				if got := choose(&m, target, s.refused, s.secrets...); got != s.want {
					t.Fatalf("step %d: got %q, want %q", i, got, s.want)
				}
			}
		})
	}
}

func TestMemoryTellsWhoWasRefused(t *testing.T) {
	var m Memory
	choose(&m, target, false, "", "b", "c")
	var told []int
	m.Choose(target, true, 3, func(i int, refused bool) Login {
		if refused {
			told = append(told, i)
		}
		return Login{}
	})
	if len(told) != 1 || told[0] != 1 {
		t.Errorf("candidates %v were told that theirs was refused, want 1 alone", told)
	}
}

func TestMemoryKeepsTargetsApart(t *testing.T) {
	var m Memory
	other := Target{Host: "r.io", Repository: "other"}
	choose(&m, target, false, "a", "b")
	choose(&m, other, false, "a", "b")
	choose(&m, target, true, "a", "b")
	if got := choose(&m, other, false, "a", "b"); got != "a" {
		t.Errorf("a refusal for %v counts for %v: got %q", target, other, got)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	var m Memory
	for i := range maxTargets + 10 {
		choose(&m, Target{Host: "r.io", Repository: fmt.Sprint(i)}, false, "a")
	}
	if len(m.given) > maxTargets {
		t.Errorf("remembers %d targets, limit %d", len(m.given), maxTargets)
	}
}
