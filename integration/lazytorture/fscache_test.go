package lazytorture

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/fscache"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/probe"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// overFscache says that layers can be loaded on demand over the kernel's cache of files here. A host has one cache, so the tests that need it run one
// after another.
var overFscache = testenv.Feature{Name: "fscache", Missing: probe.HaveFscache}

// cacheIn is where caches are in a filesystem.
const cacheIn = "fscache"

// fscacheAsked says that layers are to be mounted over fscache, as in virtual machines: the kernel here may not have it. There these tests do nothing.
func fscacheAsked() bool { return lab.LazyMode() == "fscache" }

// TestKillsFscache: readers over the kernel's cache notice nothing but the time. Each kill takes the descriptors of all objects with it, so
// that the kernel opens them again before it shows what nobody has answered.
func TestKillsFscache(t *testing.T) {
	if !fscacheAsked() {
		return
	}
	layers := newLayers(t, overFscache, len(chunks))
	torture(t, "ext4", layers, options{
		fscache: true, kills: times(300, 3000), passes: 1,
		habits: habits{oneIsLong: 40, long: 2 * time.Second, idle: 300 * time.Millisecond * testenv.Slow, stretch: testenv.Slow / 3},
	})
}

// TestLossFscache: when the keeper is killed together with the process that serves, missing data cannot be read any more, and nothing wrong is.
// The same instance can be mounted anew at once, and the mount that is dead can be unmounted.
func TestLossFscache(t *testing.T) {
	if !fscacheAsked() {
		return
	}
	layers := newLayers(t, overFscache, 1)
	w := newWorld(t, "ext4", layers, options{fscache: true})
	p := w.begin()
	old := w.make(layers[0], filepath.Join(w.dir, "old"))
	w.mountAt(old)

	w.failing.Store(true)
	ways := []string{"random", "mmap", "sequential", "exec"}
	var readers sync.WaitGroup
	for _, way := range ways {
		readers.Go(func() { w.reader(way, old) })
	}
	within(t, patient, "everybody reads", func() error {
		if n := int(w.begun.Load()); n < len(ways) {
			return fmt.Errorf("%d do", n)
		}
		return nil
	})
	must(t, w.keeperProcess.Process.Kill())
	must(t, w.lives.end(p, unix.SIGKILL))
	readers.Wait()
	t.Logf("%d reads failed when both were lost", w.mustHaveFailed())

	w.startKeeper()
	p = w.begin()
	again := *old
	again.root = filepath.Join(w.dir, "new")
	w.mountAt(&again)
	w.failing.Store(false)
	w.reader("sequential", &again)
	w.failing.Store(true)
	w.reader("sequential", old)
	t.Logf("%d reads of the dead mount failed later", w.mustHaveFailed())
	domains, err := filepath.Glob(filepath.Join(w.dir, cacheIn, "*"))
	if err != nil || len(domains) != 1 {
		t.Fatalf("directories of caches: %q, %v", domains, err)
	}
	if stale, err := fscache.Stale(w.dir, filepath.Base(domains[0])); err != nil || !slices.Equal(stale, []string{old.root}) {
		t.Errorf("dead mounts: %q, %v", stale, err)
	}
	must(t, unix.Unmount(old.root, 0))
	w.failing.Store(false)
	for _, way := range ways {
		w.reader(way, &again)
	}
	must(t, unix.Unmount(again.root, 0))
	w.emptiesCache()
	must(t, w.lives.end(p, unix.SIGTERM))
}

// TestPatienceFscache: when nobody serves for longer than the keeper waits, readers of missing data get errors; when somebody is back they read on.
func TestPatienceFscache(t *testing.T) {
	if !fscacheAsked() {
		return
	}
	layers := newLayers(t, overFscache, 1)
	w := newWorld(t, "ext4", layers, options{fscache: true, patience: time.Second})
	p := w.begin()
	in := w.make(layers[0], filepath.Join(w.dir, "mount"))
	w.mountAt(in)
	w.reader("open", in) // so that data is what is missing
	for range 3 {
		must(t, w.lives.end(p, unix.SIGKILL))
		w.failing.Store(true)
		w.reader("sequential", in)
		failed := w.mustHaveFailed()
		report, err := keeper.Status(t.Context(), w.keeper)
		if err != nil || report.Device != keeper.Denying || report.Denied == 0 {
			t.Errorf("the keeper has denied %d requests, and is %q for the device, %v", report.Denied, report.Device, err)
		}
		t.Logf("%d reads failed, %d requests were denied", failed, report.Denied)
		w.failing.Store(false)
		p = w.begin()
	}
	var readers sync.WaitGroup
	for _, way := range []string{"random", "mmap", "sequential", "exec"} {
		readers.Go(func() { w.reader(way, in) })
	}
	readers.Wait()
	must(t, unix.Unmount(in.root, 0))
	w.emptiesCache()
	must(t, w.lives.end(p, unix.SIGTERM))
}

// begin begins a life that nothing ends but the test.
func (w *world) begin() *process {
	w.t.Helper()
	p, err := w.lives.spawn()
	must(w.t, err)
	w.t.Cleanup(func() { p.stdin.Close(); p.cmd.Wait() })
	must(w.t, w.lives.begin(w.ctx, p))
	return p
}

// mountAt mounts an instance.
func (w *world) mountAt(in *instance) {
	w.t.Helper()
	must(w.t, os.MkdirAll(in.root, 0o700))
	w.t.Cleanup(func() { _ = unix.Unmount(in.root, unix.MNT_DETACH) }) // it is there if the test was cut short
	must(w.t, w.lives.mount(map[string]string{in.root: in.dir}))
}

// mustHaveFailed returns how many reads have failed since it was called last, and fails if none has.
func (w *world) mustHaveFailed() (n int) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, all := range w.slow {
		for _, r := range all {
			if r.failed {
				n++
			}
		}
	}
	clear(w.slow)
	if n == 0 {
		w.t.Error("no read has failed: everything was there")
	}
	return n
}

// emptiesCache waits until the kernel has no superblock over the cache any more, and the life has culled all that was mounted.
func (w *world) emptiesCache() {
	w.t.Helper()
	within(w.t, patient, "the kernel's cache is empty", func() error {
		entries, err := os.ReadDir("/sys/fs/erofs")
		if err != nil {
			return err
		}
		for _, e := range entries {
			if strings.Contains(e.Name(), ",m") {
				return fmt.Errorf("superblock %s", e.Name())
			}
		}
		files, err := filepath.Glob(filepath.Join(w.dir, cacheIn, "*/cache/I*/@*/D*"))
		if err == nil && len(files) > 0 {
			err = fmt.Errorf("files %q", files)
		}
		return err
	})
}
