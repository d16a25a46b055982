package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

const (
	// grace is that of the daemon in all stories: long enough to be seen, short enough to wait for.
	grace = 2 * time.Second
	// releaseTime is how long after the last use everything may take to be gone.
	releaseTime = grace + 10*time.Second
	// storyTime bounds a story whose author did not think of a better bound.
	storyTime = 4 * time.Minute
)

// story is a lab for one test, a bound for everything the test does, and what must not outlive it.
type story struct {
	*lab.Lab
	t   *testing.T
	ctx context.Context // in the lab's namespace
	// superblocks are the names below /sys/fs/erofs of the layer mounts that were seen so far. The kernel does not use one twice.
	superblocks map[string]bool
	execs       int
}

// newStory starts a lab. Unless the daemon's configuration has a table "collection", the grace is ours.
func newStory(t *testing.T, limit time.Duration, opts lab.Options) *story {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.EROFS)
	if !strings.Contains(opts.DaemonConfig, "[collection]") {
		opts.DaemonConfig += fmt.Sprintf("\n[collection]\ngrace = %q\n", grace)
	}
	l := lab.New(t, opts)
	ctx, cancel := context.WithTimeout(t.Context(), limit*testenv.Slow)
	t.Cleanup(cancel)
	return &story{Lab: l, t: t, ctx: l.Context(ctx), superblocks: map[string]bool{}}
}

// must ends the test when there is an error.
func (s *story) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// ctr runs ctr, which must succeed, and returns its output. The arguments are words, and lists of words.
func (s *story) ctr(args ...any) string {
	s.t.Helper()
	out, err := s.Ctr(s.ctx, words(args...)...)
	s.must(err)
	return out
}

func words(args ...any) []string {
	var all []string
	for _, a := range args {
		switch a := a.(type) {
		case string:
			all = append(all, a)
		case []string:
			all = append(all, a...)
		}
	}
	return all
}

// pull pulls a cached image with our snapshotter by containerd's transfer service, and returns its reference.
func (s *story) pull(image string) string {
	s.t.Helper()
	ref := s.Ref(image)
	s.must(s.tryPull(ref))
	return ref
}

func (s *story) tryPull(ref string) error {
	_, err := s.Ctr(s.ctx, "image", "pull", "--plain-http", "--snapshotter", s.Plugin(), ref)
	s.noteSuperblocks()
	return err
}

// transfer pulls an image into the namespace of a context by containerd's transfer service, without ctr.
func (s *story) transfer(ctx context.Context, ref string) error {
	from, err := registry.NewOCIRegistry(ctx, ref, registry.WithDefaultScheme("http"), registry.WithHostDir(s.HostsDir()))
	if err != nil {
		return err
	}
	platform := platforms.DefaultSpec()
	return s.Client().Transfer(ctx, from, image.NewStore(ref, image.WithPlatforms(platform), image.WithUnpack(platform, s.Plugin())))
}

// namespace is a context in one of further namespaces of the story.
func (s *story) namespace(i int) context.Context {
	return namespaces.WithNamespace(s.ctx, fmt.Sprintf("%s-%d", s.Namespace, i))
}

// start runs a container in the background, without network. Set-id programs keep their meaning in it.
func (s *story) start(ref, id string, command ...string) {
	s.t.Helper()
	s.ctr("run", "--detach", "--allow-new-privs", "--snapshotter", s.Plugin(), ref, id, command)
	s.noteSuperblocks()
}

// exec runs a shell script in a container, as root unless user is given, and returns what it printed.
func (s *story) exec(id, script string, user ...string) string {
	s.t.Helper()
	out, err := s.tryExec(id, script, user...)
	s.must(err)
	return out
}

func (s *story) tryExec(id, script string, user ...string) (string, error) {
	s.execs++
	args := []string{"task", "exec", "--exec-id", fmt.Sprintf("exec%d", s.execs)}
	for _, u := range user {
		args = append(args, "--user", u)
	}
	return s.Ctr(s.ctx, append(args, id, "/bin/sh", "-ec", script)...)
}

// runsNginx starts the nginx image, and ends it again.
func (s *story) runsNginx(ref string) {
	s.t.Helper()
	s.start(ref, "web", "sleep", "1000")
	if out := s.exec("web", "nginx -v 2>&1"); !strings.Contains(out, "nginx version") {
		s.t.Errorf("nginx -v: %q", out)
	}
	s.end("web")
}

// end ends a container and removes it with its snapshot.
func (s *story) end(id string) {
	s.t.Helper()
	s.ctr("task", "rm", "--force", id)
	s.ctr("container", "rm", id)
}

// removeImages removes images, and lets containerd collect what only they needed.
func (s *story) removeImages(refs ...string) {
	s.t.Helper()
	s.ctr("image", "rm", "--sync", refs)
}

// collect lets containerd collect its garbage. It compares its snapshots with ours only after one was removed, so one is.
func (s *story) collect() {
	s.t.Helper()
	s.must(s.tryCollect())
}

func (s *story) tryCollect() error {
	ctx, release := s.leased()
	defer release()
	sn := s.Client().SnapshotService(s.Plugin())
	if _, err := sn.Prepare(ctx, "removed", ""); err != nil {
		return err
	}
	return sn.Remove(ctx, "removed")
}

// leased is a context whose snapshots and blobs containerd does not collect until release is called; then it does at once.
func (s *story) leased() (ctx context.Context, release func()) {
	s.t.Helper()
	manager := s.Client().LeasesService()
	lease, err := manager.Create(s.ctx, leases.WithRandomID(), leases.WithExpiration(time.Hour))
	s.must(err)
	return leases.WithLease(s.ctx, lease.ID), func() {
		if err := manager.Delete(s.ctx, lease, leases.SynchronousDelete); err != nil {
			s.t.Error(err)
		}
	}
}

// within waits until f returns nil. When limit is over the test ends with its last error.
func (s *story) within(limit time.Duration, what string, f func() error) {
	s.t.Helper()
	limit *= testenv.Slow
	start := time.Now()
	for {
		err := f()
		if err == nil {
			s.t.Logf("%s: after %v", what, time.Since(start).Round(time.Millisecond))
			return
		}
		if time.Since(start) > limit {
			s.t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
		select {
		case <-s.ctx.Done():
			s.t.Fatalf("%s: %v: %v", what, context.Cause(s.ctx), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// released expects that soon nothing of ours is left of what the story did.
func (s *story) released() {
	s.t.Helper()
	s.within(releaseTime, "everything released", s.leftovers)
}

// leftovers names what there is of ours: files, mounts, superblocks, loop devices.
func (s *story) leftovers() error {
	var errs []error
	for _, dir := range []string{"m", "layers", "snapshots", "removing"} {
		entries, err := os.ReadDir(filepath.Join(s.SnapshotterRoot(), dir))
		if err != nil || len(entries) > 0 {
			errs = append(errs, fmt.Errorf("%s holds %v (%v)", dir, entries, err))
		}
	}
	points, err := s.Mounts("snapshotter")
	if err != nil || len(points) > 0 {
		errs = append(errs, fmt.Errorf("mounted: %q (%v)", points, err))
	}
	if alive := living(s.superblocks); len(alive) > 0 {
		errs = append(errs, fmt.Errorf("superblocks %q live", alive))
	}
	return errors.Join(append(errs, s.loopDevices())...)
}

// loopDevices is an error that names the loop devices on our files.
func (s *story) loopDevices() error {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range files {
		// A device may be cleared before it is looked at.
		if b, readErr := os.ReadFile(file); readErr == nil && strings.HasPrefix(string(b), s.Dir+"/") {
			err = errors.Join(err, fmt.Errorf("%s is on %s", file, strings.TrimSpace(string(b))))
		}
	}
	return err
}

// layerMounts returns the mountpoints of layers.
func (s *story) layerMounts() []string {
	s.t.Helper()
	points, err := s.Mounts("snapshotter/m")
	s.must(err)
	return points
}

// noteSuperblocks remembers the EROFS superblocks that are mounted, so that leftovers knows them when they are not any more.
func (s *story) noteSuperblocks() {
	s.t.Helper()
	for _, point := range s.layerMounts() {
		if name, ok := superblock(point); ok {
			s.superblocks[name] = true
		}
	}
}

// living returns those of the superblocks that somebody still uses.
func living(superblocks map[string]bool) []string {
	var alive []string
	for name := range superblocks {
		if _, err := os.Stat("/sys/fs/erofs/" + name); err == nil {
			alive = append(alive, name)
		}
	}
	return alive
}

// superblock returns the name below /sys/fs/erofs of what is mounted at a path. The names of block devices are not given: they are
// used again.
func superblock(path string) (name string, ok bool) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", false
	}
	defer unix.Close(fd)
	var answer struct {
		length uint8
		name   [128]byte
	}
	const fsIocGetFSSysfsPath = 0x80811501
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsIocGetFSSysfsPath, uintptr(unsafe.Pointer(&answer))); errno != 0 {
		return "", false
	}
	name, ok = strings.CutPrefix(string(answer.name[:min(answer.length, 128)]), "erofs/")
	return name, ok && !strings.HasPrefix(name, "loop")
}

// instances returns the names of what is in the layer store.
func (s *story) instances() []string {
	s.t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.SnapshotterRoot(), "layers"))
	s.must(err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names
}
