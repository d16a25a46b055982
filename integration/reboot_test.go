package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// TestReboot does to the files and mounts what a reboot does: all mounts and everything below /run are gone, all processes start anew.
// The registry has lost its images. Containers of images that are there start without a pull, also an old container with what it had
// written.
func TestReboot(t *testing.T) {
	for _, differ := range []string{lab.Differ, "walking"} {
		t.Run(differ, func(t *testing.T) { reboot(t, differ) })
	}
}

func reboot(t *testing.T, differ string) {
	s := newStory(t, storyTime, lab.Options{Differ: differ, Images: []string{"nginx-gzip", "busybox-zstd"}})
	ref := s.pull("nginx-gzip")
	s.start(ref, "old", "/bin/sleep", "1000")
	s.exec("old", "echo written before >/root/note; rm /etc/debian_version")
	s.ctr("task", "rm", "--force", "old")

	s.must(s.StopContainerd())
	s.must(s.StopSnapshotter())
	for _, dir := range []string{"containerd", "snapshotter"} {
		s.must(s.UnmountAll(dir))
	}
	s.must(os.RemoveAll(filepath.Join(s.Dir, "containerd/state")))
	s.must(os.RemoveAll(filepath.Join(s.Dir, "registry")))
	if points := s.layerMounts(); len(points) > 0 {
		t.Fatalf("still mounted: %q", points)
	}
	s.must(s.StartSnapshotter(s.ctx))
	s.must(s.StartContainerd(s.ctx))

	s.start(ref, "new", "/bin/sleep", "1000")
	if out := s.exec("new", "cat /var/www/html/index.html"); out != "<h1>ok</h1>\n" {
		t.Errorf("the new container reads %q", out)
	}
	s.readsRight("new")
	s.ctr("task", "start", "--detach", "old")
	s.noteSuperblocks()
	if out := s.exec("old", "cat /root/note; ls /etc"); !strings.HasPrefix(out, "written before\n") || strings.Contains(out, "debian_version") {
		t.Errorf("the old container shows %q", out)
	}
	s.readsRight("old")
	if err := s.tryPull(s.Ref("busybox-zstd")); err == nil {
		t.Error("the registry still serves images, so this test proves nothing")
	}
	s.exec("new", "echo more >>/bin/bash")
	if err := s.tryRead("new"); err == nil {
		t.Error("the checksums do not find a changed file, so this test proves nothing")
	}
	s.end("new")
	s.end("old")
	s.removeImages(ref)
	s.released()
}
