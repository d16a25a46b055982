package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// TestPowerCut pulls with conversion.sync = "after", and then does to the layers what a power cut before the sync does on ext4: their
// records are empty, and the contents of their files are gone. The image's containers start nevertheless, read right bytes, and the
// registry is not asked.
func TestPowerCut(t *testing.T) {
	s := newStory(t, storyTime, lab.Options{Images: []string{"nginx-gzip"}, DaemonConfig: "[conversion]\nsync = \"after\"\n"})
	ref := s.pull("nginx-gzip")
	s.start(ref, "old", "/bin/sleep", "1000")
	s.readsRight("old")
	s.exec("old", "echo written before >/root/note")
	s.ctr("task", "rm", "--force", "old")
	before := s.instances()

	s.must(s.StopContainerd())
	s.must(s.StopSnapshotter())
	for _, dir := range []string{"containerd", "snapshotter"} {
		s.must(s.UnmountAll(dir))
	}
	s.must(os.RemoveAll(filepath.Join(s.Dir, "registry")))
	for _, id := range before {
		s.loses(filepath.Join(s.SnapshotterRoot(), "layers", id))
	}
	s.must(s.StartSnapshotter(s.ctx))
	log, err := s.Log("snapshotter")
	s.must(err)
	if n := strings.Count(log, "layer instance dropped"); n != len(before) {
		t.Fatalf("%d layers were dropped, %d were not synced", n, len(before))
	}
	s.must(s.StartContainerd(s.ctx))

	s.ctr("task", "start", "--detach", "old")
	s.noteSuperblocks()
	if out := s.exec("old", "cat /root/note"); out != "written before\n" {
		t.Errorf("the old container shows %q", out)
	}
	s.readsRight("old")
	s.start(ref, "new", "/bin/sleep", "1000")
	s.readsRight("new")
	if again := s.instances(); len(again) != len(before) {
		t.Errorf("%d layer instances, there were %d", len(again), len(before))
	}
	s.end("new")
	s.end("old")
	s.removeImages(ref)
	s.released()
}

// loses takes the contents of an instance's files.
func (s *story) loses(instance string) {
	s.t.Helper()
	record := filepath.Join(instance, "layer.json")
	b, err := os.ReadFile(record)
	s.must(err)
	if strings.Contains(string(b), "unsynced") {
		s.t.Errorf("not synced when the daemon had ended: %s", b)
	}
	for _, name := range []string{"meta.erofs", "data", "layer.json"} {
		path := filepath.Join(instance, name)
		fi, err := os.Stat(path)
		s.must(err)
		s.must(os.Truncate(path, 0))
		if name != "layer.json" { // whose length is lost, too: it is written last
			s.must(os.Truncate(path, fi.Size()))
		}
	}
}
