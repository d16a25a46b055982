package remote

import "testing"

func TestFetchedFrom(t *testing.T) {
	const key = "containerd.io/distribution.source."
	for _, c := range []struct {
		host, repositories, image string
		want                      bool
	}{
		{"docker.io", "library/nginx", "docker.io/library/nginx:1", true},
		{"docker.io", "library/nginx", "docker.io/library/nginx@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", true},
		{"docker.io", "a,library/nginx,z", "docker.io/library/nginx:1", true},
		{"docker.io", "library/nginx", "docker.io/library/ngin:1", false},
		{"docker.io", "library/nginx", "ghcr.io/library/nginx:1", false},
		{"docker.io", "", "docker.io/library/nginx:1", false},
		{"127.0.0.1", "app", "127.0.0.1:5000/app:1", true}, // containerd leaves the port out
		{"::1", "app", "[::1]:5000/app:1", true},
		{"::1", "app", "[::1]/app:1", true},
		{"", "", "app", false},
	} {
		if got := fetchedFrom(map[string]string{key + c.host: c.repositories}, c.image); got != c.want {
			t.Errorf("%s from %s/%s: %v, want %v", c.image, c.host, c.repositories, got, c.want)
		}
	}
	if fetchedFrom(nil, "docker.io/library/nginx:1") {
		t.Error("without labels: true")
	}
}
