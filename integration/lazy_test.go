package integration

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/treediff"
)

// Variants of the cached images that have an index.
const (
	estargzFormat = "estargz"
	podmanFormat  = "zstdchunked"        // zstd:chunked as podman, buildah and skopeo make it
	nerdctlFormat = "zstdchunked-stargz" // zstd:chunked as nerdctl and ctr-remote make it
)

// quietConfig keeps everything from being fetched that nobody has asked for.
const quietConfig = "[lazy]\nbackground = false\nstartup = false\n"

// newLazyStory is a story whose daemon loads layers on demand.
func newLazyStory(t *testing.T, limit time.Duration, o lab.Options) *story {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.EROFS, lab.OnDemand())
	if !strings.Contains(o.DaemonConfig, "[lazy]") {
		o.DaemonConfig = quietConfig + o.DaemonConfig
	}
	return newStory(t, limit, remoteOptions(o))
}

// TestLazy starts containers of three images in three formats, with a part of each image on this machine. When everything was read, the tree
// is that of an image that was pulled as a whole.
func TestLazy(t *testing.T) {
	for i, p := range programs[:3] {
		for j, format := range []string{estargzFormat, podmanFormat, nerdctlFormat} {
			if i == j || long() {
				t.Run(p.image+"-"+format, func(t *testing.T) { lazyLife(t, p, format) })
			}
		}
	}
}

func lazyLife(t *testing.T, p program, format string) {
	image := p.image + "-" + format
	s := newLazyStory(t, storyTime, lab.Options{Images: []string{image}})
	ref := s.pull(image)
	s.neverFellBack()
	s.runs(p, ref)
	s.fetchedPart(image)
	got := s.view(s.Plugin(), s.topChain(ref))
	s.endsWithNothing(ref)

	eager := newStory(t, storyTime, remoteOptions(lab.Options{Images: []string{image}, DaemonConfig: "[lazy]\nenabled = false\n"}))
	eagerRef := eager.pull(image)
	want := eager.view(eager.Plugin(), eager.topChain(eagerRef))
	same(t, asIndexed(format, want), asIndexed(format, got))
	eager.endsWithNothing(eagerRef)
}

// asIndexed is a tree as the index of a format knows it.
func asIndexed(format string, records []treediff.Record) []treediff.Record {
	bookkeeping := []string{"stargz.index.json", ".no.prefetch.landmark", ".prefetch.landmark"}
	records = slices.DeleteFunc(records, func(r treediff.Record) bool { return slices.Contains(bookkeeping, r.Path) })
	if format == podmanFormat {
		return records
	}
	for i, r := range records { // to the nearest second
		records[i].Mtime = treediff.Time{Sec: r.Mtime.Sec + (r.Mtime.Nsec+5e8)/1e9}
	}
	return records
}

// fetchedPart expects that of the large layers of an image a part only was fetched, and by the daemon.
func (s *story) fetchedPart(image string) {
	s.t.Helper()
	fetched := s.fetchedBy(image)
	var all, part int64
	for _, l := range s.cachedLayers(image) {
		f := fetched[l.Digest.String()]
		if f.containerd > 0 {
			s.t.Errorf("containerd fetched %d bytes of layer %s", f.containerd, l.Digest)
		}
		all += l.Size
		part += f.daemon
	}
	s.t.Logf("%s: %d of %d bytes fetched, %d %%", image, part, all, 100*part/all)
	if part > all*3/4 {
		s.t.Errorf("%d of %d bytes were fetched", part, all)
	}
}

// layersIn is an error unless all layers have the state.
func (s *story) layersIn(state string) error {
	status, err := s.status()
	for _, l := range status.Layers {
		if l.State != state {
			return fmt.Errorf("layer %s is %s", l.Digest, l.State)
		}
	}
	return err
}

// TestLazyCRI: a kubelet with containerd 2.4, and with 1.7.
func TestLazyCRI(t *testing.T) {
	for _, o := range []lab.Options{
		{Containerd: lab.Containerd24, Images: []string{"node-" + estargzFormat}},
		{Containerd: lab.Containerd17, Announce: lab.AnnounceLocal, Images: []string{"node-" + podmanFormat}},
	} {
		t.Run(o.Containerd, func(t *testing.T) {
			image := o.Images[0]
			o.CRI = true
			k := newKubelet(newLazyStory(t, storyTime, o))
			ref := k.Ref(image)
			k.pulls(ref, nil)
			k.runsPod(ref, k.executes)
			k.neverFellBack()
			k.fetchedPart(image)
			k.removesAllImages()
			k.released()
		})
	}
}

// newLazyBox is a story with a container, "box", of an image most of whose data are missing.
func newLazyBox(t *testing.T, daemonConfig string) (s *story, ref string) {
	t.Helper()
	const image = "nginx-" + estargzFormat
	s = newLazyStory(t, storyTime, lab.Options{Images: []string{image}, DaemonConfig: daemonConfig})
	ref = s.pull(image)
	s.must(s.neverWhole())
	s.startIdle(ref, "box")
	return s, ref
}

// neverWhole is an error if a layer was pulled as a whole although it could have been lazy: what is told of it then proves nothing.
func (s *story) neverWhole() error {
	status, err := s.status()
	for reason, f := range status.LazyFallbacks {
		if reason != "small" && reason != "no-index" {
			err = errors.Join(err, fmt.Errorf("%d layers were pulled as a whole (%s): %s", f.Count, reason, f.Cause))
		}
	}
	return err
}

// endsWithNothing ends containers, removes their image, and expects that nothing of them is left.
func (s *story) endsWithNothing(ref string, containers ...string) {
	s.t.Helper()
	for _, id := range containers {
		s.end(id)
	}
	s.removeImages(ref)
	s.released()
}

// restartsDaemon ends the daemon and starts another one.
func (s *story) restartsDaemon(end func() error) {
	s.t.Helper()
	s.must(end())
	s.must(s.StartSnapshotter(s.ctx))
}

// startIdle starts a container whose own programs are here, so that it lives on what happens to others.
func (s *story) startIdle(ref, id string) {
	s.t.Helper()
	s.start(ref, id, "sleep", "1000")
	s.exec(id, "cd /usr/bin; cat sleep sh head dd cat sha256sum timeout wc grep ../lib/x86_64-linux-gnu/libc.so.6 ../lib/x86_64-linux-gnu/libcrypto.so.3 "+
		"../lib64/ld-linux-x86-64.so.2 >/dev/null")
}

// TestLazyBackground: what nobody reads is fetched after a while, and the whole layer checked; then neither registry nor daemon is needed.
func TestLazyBackground(t *testing.T) {
	s, ref := newLazyBox(t, "[lazy]\nbackground_delay = \"100ms\"\n")
	s.within(time.Minute, "all layers complete", func() error { return s.layersIn("complete") })
	s.within(time.Minute, "all layers checked", func() error {
		status, err := s.status()
		for _, l := range status.Layers {
			if l.Lazy != nil && l.Lazy.Verified != "yes" {
				return fmt.Errorf("layer %s: checked %q", l.Digest, l.Lazy.Verified)
			}
		}
		return err
	})
	s.StopRegistry()
	if overFscache() { // the kernel goes on asking, for what it has no copy of
		s.restartsDaemon(s.KillSnapshotter)
		s.readsRight("box")
	} else {
		s.must(s.StopSnapshotter())
		s.must(s.KillKeeper())
		s.readsRight("box")
		s.must(s.StartSnapshotter(s.ctx))
	}
	s.endsWithNothing(ref, "box")
}

// TestLazyRestart: a container does not notice that the daemon is stopped, killed or replaced; those who read missing data wait.
func TestLazyRestart(t *testing.T) {
	s, ref := newLazyBox(t, "")
	for _, end := range []func() error{s.StopSnapshotter, s.KillSnapshotter} {
		s.must(end())
		read := make(chan error, 1)
		go func() {
			_, err := s.tryExec("box", "cat /usr/lib/x86_64-linux-gnu/*.so* | wc -c")
			read <- err
		}()
		time.Sleep(200 * time.Millisecond)
		s.must(s.StartSnapshotter(s.ctx))
		s.must(<-read)
	}
	s.readsRight("box")
	s.endsWithNothing(ref, "box")
}

// TestLazyPatience: without a daemon for longer than the keeper waits, readers get errors, neither zeros nor silence; with it they read.
func TestLazyPatience(t *testing.T) {
	s, ref := newLazyBox(t, quietConfig+"[keeper]\npatience = \"1s\"\n")
	s.must(s.KillSnapshotter())
	if _, err := s.tryExec("box", "sha256sum /usr/bin/perl* >/dev/null"); err == nil {
		t.Error("missing data were read without a daemon")
	}
	s.must(s.StartSnapshotter(s.ctx))
	s.readsRight("box")
	s.endsWithNothing(ref, "box")
}

// TestLazyPoisoned: when daemon and keeper are lost together, nobody reads anything wrong after the restart, and who may have is named.
func TestLazyPoisoned(t *testing.T) {
	s, ref := newLazyBox(t, "")
	s.exec("box", "sha256sum /bin/ls") // something is present
	s.restartsDaemon(func() error { return errors.Join(s.KillSnapshotter(), s.KillKeeper()) })
	if log := s.daemonLog(); !strings.Contains(log, "restart them") || !strings.Contains(log, "box") {
		t.Errorf("the container is not named:\n%s", log)
	}
	s.restartsDaemon(s.StopSnapshotter)
	if users := s.mustRestart(); !slices.Equal(users, []string{"box"}) {
		t.Errorf("after another restart %q are to be restarted", users)
	}
	if err := s.tryRead("box"); err == nil {
		t.Error("the old container read everything, with data that nobody answered for")
	} else if strings.Contains(err.Error(), "FAILED\n") && !strings.Contains(err.Error(), "Input/output error") {
		t.Errorf("the old container read wrong bytes: %v", err)
	}
	s.start(ref, "new", "sleep", "1000")
	s.readsRight("new")
	s.endsWithNothing(ref, "box", "new")
}

// mustRestart are the names of the containers of which the daemon says that they must be restarted.
func (s *story) mustRestart() (names []string) {
	s.t.Helper()
	status, err := s.status()
	s.must(err)
	for _, l := range status.Layers {
		if l.Lazy == nil || !l.Lazy.Poisoned {
			continue
		}
		for _, user := range l.Lazy.Users {
			names = append(names, path.Base(user)) // namespace and number are before it
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// TestLazyRegistryStops: with the registry gone readers get errors after the deadline; one that is killed while it waits ends at once.
func TestLazyRegistryStops(t *testing.T) {
	s, ref := newLazyBox(t, quietConfig+"deadline = \"3s\"\n")
	s.StopRegistry()
	began := time.Now()
	if _, err := s.tryExec("box", "head -c 4096 /usr/bin/perl >/dev/null"); err == nil {
		t.Error("missing data were read without a registry")
	}
	t.Logf("error after %v", time.Since(began))
	began = time.Now()
	if out, err := s.tryExec("box", "timeout -s KILL 0.2 cat /usr/lib/x86_64-linux-gnu/libapt-pkg.so.6.0.0 >/dev/null || echo killed"); err != nil ||
		!strings.Contains(out, "killed") || time.Since(began) > 2*time.Second*testenv.Slow {
		t.Errorf("a reader that was killed: %q, %v, after %v", out, err, time.Since(began))
	}
	s.endsWithNothing(ref, "box")
}

// TestLazyRemoval: everything is taken away from a running container whose data are missing, and its image pulled again. It goes on reading
// right bytes; when it ends, everything of it is released.
func TestLazyRemoval(t *testing.T) {
	s, ref := newLazyBox(t, "")
	s.noteSuperblocks()
	s.ctr("snapshots", "--snapshotter", s.Plugin(), "rm", "box")
	s.removeImages(ref)
	s.within(releaseTime, "layers gone", func() error {
		if left := s.instances(); len(left) > 0 && !overFscache() { // where they stay, without a mount
			return fmt.Errorf("layers %q", left)
		}
		if points := s.layerMounts(); len(points) > 0 {
			return fmt.Errorf("mounted: %q", points)
		}
		return nil
	})
	s.readsRight("box")
	s.must(s.tryPull(ref))
	s.start(ref, "second", "sleep", "1000")
	s.readsRight("second")
	s.restartsDaemon(s.KillSnapshotter)
	s.exec("box", "cat /usr/bin/* >/dev/null")
	s.end("box")
	s.within(10*time.Second, "orphans released", func() error {
		left, err := filepath.Glob(filepath.Join(s.SnapshotterRoot(), "orphans/*"))
		if err != nil || len(left) > 0 {
			return fmt.Errorf("orphans %q (%v)", left, err)
		}
		return nil
	})
	s.readsRight("second")
	s.endsWithNothing(ref, "second")
}
