package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// TestCut is a power cut that a virtual machine really has, while a container reads a layer for the first time and another image is pulled: see
// integration/vm, which runs this test before and after it. EROFS_TEST_CUT says which part is due. When the machine is on again, what is on
// its disk must be enough for old and new containers to read right bytes.
func TestCut(t *testing.T) {
	switch os.Getenv("EROFS_TEST_CUT") {
	case "before":
		beforeCut(t)
	case "after":
		afterCut(t)
	default:
		t.Skip("EROFS_TEST_CUT is not set; `make test-vm` runs this test in virtual machines")
	}
}

const (
	cutLazy  = "nginx-" + estargzFormat
	cutEager = "nginx-gzip"
)

// cutOptions has a registry that is found again.
func cutOptions() lab.Options {
	return lab.Options{
		Images: []string{cutLazy, cutEager}, Registry: lab.Registry{Address: "127.0.0.1:5900"}, Announce: lab.AnnounceTransfer,
		DaemonConfig: quietConfig,
	}
}

func beforeCut(t *testing.T) {
	testenv.Need(t, lab.OnDemand())
	s := newStory(t, storyTime, cutOptions())
	unix.Sync() // for the registry, which is another machine elsewhere
	ref := s.pull(cutLazy)
	s.startReader(ref, "box")
	go func() { _ = s.tryPull(s.Ref(cutEager)) }()
	s.within(storyTime, "some data are here", func() error {
		status, err := s.status()
		var all, present int64
		for _, l := range status.Layers {
			if l.Lazy != nil {
				all, present = all+l.Lazy.Bytes, present+l.Lazy.PresentBytes
			}
		}
		if err == nil && present < all/4 {
			err = fmt.Errorf("%d of %d bytes", present, all)
		}
		return err
	})
	fmt.Println("=== vm: cut") // the host waits for this line
	time.Sleep(storyTime)
	t.Error("the power is still on")
}

func afterCut(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), "eslab-*"))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("directories of labs: %q, %v", dirs, err)
	}
	// What is in memory on other machines.
	if err := os.RemoveAll(filepath.Join(dirs[0], "containerd/state")); err != nil {
		t.Fatal(err)
	}
	o := cutOptions()
	o.Resume = dirs[0]
	testenv.Need(t, lab.OnDemand())
	s := newStory(t, storyTime, o)
	s.endLeases() // that of the pull which was cut off
	ref := s.Ref(cutLazy)
	s.ctr("task", "start", "--detach", "box")
	s.noteSuperblocks()
	s.readsRight("box")
	s.start(ref, "new", "/bin/sleep", "1000")
	s.readsRight("new")
	other := s.pull(cutEager)
	s.start(other, "other", "/bin/sleep", "1000")
	s.readsRight("other")
	for _, id := range []string{"box", "new", "other"} {
		s.end(id)
	}
	s.removeImages(ref, other)
	s.released()
}
