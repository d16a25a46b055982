package lazy

import "testing"

func TestTrusts(t *testing.T) {
	for _, c := range []struct {
		pattern, image string
		want           bool
	}{
		{"registry.example/team/app", "registry.example/team/app:1", true},
		{"registry.example/team/app", "registry.example/team/app", true},
		{"registry.example/team/app", "registry.example/team/app@sha256:0123", true},
		{"registry.example/team/app", "registry.example/team/app:1@sha256:0123", true},
		{"registry.example/team/app", "registry.example/team/app2:1", false},
		{"registry.example/team/app", "registry.example/team/app/sub:1", false},
		{"registry.example/team/app", "registry.example/team", false},
		{"registry.example/team/app", "evil.example/registry.example/team/app:1", false},
		{"registry.example/team/*", "registry.example/team/app:1", true},
		{"registry.example/team/*", "registry.example/team/deep/app:1", true},
		{"registry.example/team/*", "registry.example/teams/app:1", false},
		{"registry.example/team/*", "registry.example/team:1", false},
		{"registry.example/*", "registry.example/app:1", true},
		{"registry.example/*", "registry.example:5000/app:1", false},
		{"registry.example/*", "registry.example.evil.example/app:1", false},
		{"registry.example:5000/*", "registry.example:5000/app:1", true},
		{"registry.example:5000/app", "registry.example:5000/app", true},
		{"registry.example:5000/app", "registry.example:5000/app:1", true},
		{"[::1]:5000/app", "[::1]:5000/app:1", true},
		{"docker.io/library/*", "docker.io/library/nginx:latest", true},
		{"*", "registry.example/app:1", true},
		{"*", "x", true},
		// What config refuses means nothing here.
		{"registry.example/team*", "registry.example/team-of-others/app:1", false},
		{"reg*", "registry.example/app:1", false},
		{"", "registry.example/app:1", false},
		{"registry.example/app:1", "registry.example/app:1", false},
		{"*/app", "registry.example/app:1", false},
	} {
		if got := trusts([]string{"other.example/x", c.pattern}, c.image); got != c.want {
			t.Errorf("pattern %q, image %q: %v, want %v", c.pattern, c.image, got, c.want)
		}
	}
	if trusts(nil, "registry.example/app:1") {
		t.Error("no pattern trusts")
	}
}
