package integration

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// TestStartup: when an image was pulled, and nothing of it was run, all that its loader needs is fetched: it does its work without a registry.
func TestStartup(t *testing.T) {
	const image = "node-estargz"
	s := newLazyStory(t, storyTime, lab.Options{Images: []string{image},
		DaemonConfig: "[log]\nlevel = \"debug\"\n[lazy]\nbackground = false\nstartup = true\ndeadline = \"2s\"\n"})
	ref := s.pull(image)
	var said string
	s.within(30*time.Second, "the program was read", func() error {
		for line := range strings.Lines(s.daemonLog()) {
			if strings.Contains(line, "read what the image starts") {
				said = line
				return nil
			}
		}
		return errors.New("the daemon does not say so")
	})
	t.Log(said)
	s.fetchedPart(image)
	s.StopRegistry()
	// What ldd -r does: it loads a program and its libraries, relocates them, and executes none of them.
	out, err := s.Ctr(s.ctx, "run", "--rm", "--env", "LD_WARN=yes", "--env", "LD_BIND_NOW=yes", "--snapshotter", s.Plugin(), ref, "box",
		"/lib64/ld-linux-x86-64.so.2", "--list", "/usr/bin/node")
	if err != nil || !strings.Contains(out, "libnode.so") {
		t.Errorf("the loader: %v\n%s", err, out)
	}
	s.removeImages(ref)
	s.released()
}
