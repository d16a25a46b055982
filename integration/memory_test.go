package integration

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// TestMemory: what the daemon takes while it pulls four large layers at once, and when it has nothing to do.
func TestMemory(t *testing.T) {
	const (
		idleLimit = 40 << 20
		peakLimit = 200 << 20
	)
	size := 60 << 20
	if long() {
		size = 250 << 20
	}
	s := newStory(t, 10*time.Minute, remoteOptions(lab.Options{DaemonConfig: "[conversion]\nparallel = 4\n"}))
	idle := s.daemonMemory("VmRSS")
	if idle > idleLimit {
		t.Errorf("idle: %d MiB, want at most %d", idle>>20, idleLimit>>20)
	}
	var layers []layer
	for i := range 4 {
		layers = append(layers, s.newLayer(fmt.Sprintf("large%d", i), size))
	}
	ref := s.compose("large-v1", layers...)
	s.must(s.transfer(s.ctx, ref))
	peak := s.daemonMemory("VmHWM")
	t.Logf("idle %d MiB; layers of %d MiB: peak %d MiB", idle>>20, size>>20, peak>>20)
	if peak > peakLimit {
		t.Errorf("peak: %d MiB, want at most %d", peak>>20, peakLimit>>20)
	}
	s.within(time.Minute, "memory is given back", func() error {
		if now := s.daemonMemory("VmRSS"); now > idleLimit {
			return fmt.Errorf("%d MiB, want at most %d", now>>20, idleLimit>>20)
		}
		return nil
	})
}

// daemonMemory returns a line of the daemon's status (proc(5)), in bytes.
func (s *story) daemonMemory(name string) int64 {
	s.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.SnapshotterPID()))
	s.must(err)
	m := regexp.MustCompile(name + `:\s+(\d+) kB`).FindSubmatch(b)
	if m == nil {
		s.t.Fatalf("no %s in %s", name, b)
	}
	kib, err := strconv.ParseInt(string(m[1]), 10, 64)
	s.must(err)
	return kib << 10
}
