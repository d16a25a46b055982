package registry

import (
	"bytes"
	"fmt"
	"net/http/httptest"
	"testing"
)

// What one host has wrong is asked of the next one, and of all when that fails.
func TestAgain(t *testing.T) {
	content := big()
	mirror, origin := newRegistry(t, content, httptest.NewServer), newRegistry(t, content, httptest.NewServer)
	dir := writeHosts(t, upstream, fmt.Sprintf("server = %q\n[host.%q]\n", origin.URL, mirror.URL))
	c := newClient(t, Options{HostsDir: dir})
	p := make([]byte, 1000)
	read := func(attempt int) {
		t.Helper()
		err := c.ReadAt(Again(t.Context(), attempt), upstream+"/library/app:1", describes(content), p, 5000)
		if err != nil || !bytes.Equal(p, content[5000:6000]) {
			t.Fatalf("attempt %d: wrong bytes or %v", attempt, err)
		}
	}
	for attempt, want := range [][2]int{{1, 0}, {1, 1}, {2, 1}, {2, 2}} {
		read(attempt)
		if got := [2]int{len(mirror.seen()), len(origin.seen())}; got != want {
			t.Fatalf("after attempt %d mirror and origin were asked %d times, want %d", attempt, got, want)
		}
	}
	origin.fail("blobs", status(404))
	read(1)
	if got := len(mirror.seen()); got != 3 {
		t.Errorf("the mirror was asked %d times, want 3: the origin has nothing", got)
	}
}
