package testenv

import (
	"testing"
	"time"
)

func TestSlowness(t *testing.T) {
	for text, want := range map[string]time.Duration{"": 1, "10": 10, "0": 1, "-3": 1, "fast": 1} {
		if got := slowness(text); got != want {
			t.Errorf("%q: got %d", text, got)
		}
	}
}
