package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// Stories of what is particular to mounts over fscache. They are told in virtual machines (integration/vm), whose kernels have it: elsewhere they do
// nothing. The others are those of all lazy layers.

// overFscache says that layers with missing data are mounted over fscache.
func overFscache() bool { return lab.LazyMode() == "fscache" }

// cached are the names of the superblocks over fscache, and of the files in its caches that have one.
func (s *story) cached() (superblocks, files []string) {
	s.t.Helper()
	all, err := filepath.Glob("/sys/fs/erofs/*,*")
	s.must(err)
	for _, name := range all {
		superblocks = append(superblocks, filepath.Base(name))
	}
	files, err = filepath.Glob(filepath.Join(s.SnapshotterRoot(), "fscache/*/cache/*/*/*"))
	s.must(err)
	return superblocks, files
}

// TestFscacheLife: the layers of an image are mounted in one domain. Removed under a container they stay until it ends; then all of them goes: superblocks,
// what the kernel has copied of them, and the keeper's hold on the device.
func TestFscacheLife(t *testing.T) {
	if !overFscache() {
		return
	}
	s, ref := newLazyBox(t, "")
	superblocks, _ := s.cached()
	domains := map[string]bool{}
	for _, name := range superblocks {
		domain, _, _ := strings.Cut(name, ",")
		domains[domain] = true
	}
	t.Logf("superblocks %q", superblocks)
	if len(superblocks) == 0 || len(domains) != 1 {
		t.Fatalf("superblocks %q, want some in one domain", superblocks)
	}
	if n := s.metric("erofs_snapshotter_fscache_layers"); int(n) != len(superblocks) {
		t.Errorf("the daemon says that %v layers are mounted over fscache, the kernel %d", n, len(superblocks))
	}
	if n := s.metric("erofs_snapshotter_fscache_copied_bytes_total"); n == 0 {
		t.Error("nothing was copied")
	}
	s.ctr("snapshots", "--snapshotter", s.Plugin(), "rm", "box")
	s.removeImages(ref)
	s.within(releaseTime, "no layer mounted", func() error {
		if points := s.layerMounts(); len(points) > 0 {
			return fmt.Errorf("mounted: %q", points)
		}
		return nil
	})
	s.restartsDaemon(s.KillSnapshotter)
	s.readsRight("box")
	s.end("box")
	s.within(10*time.Second, "all released", func() error {
		superblocks, files := s.cached()
		err := s.leftovers()
		if len(superblocks)+len(files) > 0 {
			err = errors.Join(err, fmt.Errorf("superblocks %q, files %q", superblocks, files))
		}
		return err
	})
}

// TestFscacheBusy: the device has one user. If that is another program, check and the log name it, layers are pulled as a whole, and fallbacks say so.
// Once it has gone, the next daemon loads on demand.
func TestFscacheBusy(t *testing.T) {
	if !overFscache() {
		return
	}
	const image = "nginx-" + estargzFormat
	device, err := os.OpenFile("/dev/cachefiles", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	s := newLazyStory(t, storyTime, lab.Options{Images: []string{image}})
	self := fmt.Sprintf("(process %d)", os.Getpid())
	if log := s.daemonLog(); !strings.Contains(log, self) {
		t.Errorf("who has the device is not in the log:\n%s", log)
	}
	report, err := s.Check(s.ctx)
	if err != nil || !strings.Contains(report, self) || !strings.Contains(report, "usable: images are converted when they are pulled") {
		t.Errorf("check says (%v):\n%s", err, report)
	}
	ref := s.pull(image)
	s.must(s.layersIn("complete"))
	status, err := s.status()
	s.must(err)
	fallback, ok := status.LazyFallbacks["not-ready"]
	if !ok || !strings.Contains(fallback.Cause, self) {
		t.Errorf("fallbacks: %+v", status.LazyFallbacks)
	}
	s.removeImages(ref)
	s.released()
	s.must(device.Close())
	s.restartsDaemon(s.StopSnapshotter)
	s.must(s.tryPull(ref))
	s.startIdle(ref, "box")
	if superblocks, _ := s.cached(); len(superblocks) == 0 {
		t.Error("nothing is mounted over fscache")
	}
	s.endsWithNothing(ref, "box")
}
