package integration

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// TestLazyKeeperHangs: the daemon is started while the keeper does not answer. It starts, with nothing poisoned and nothing new of the layers that
// the keeper may hold; their readers wait. When the keeper goes on so does everything.
func TestLazyKeeperHangs(t *testing.T) {
	const image = "nginx-estargz"
	s := newLazyStory(t, storyTime, lab.Options{Images: []string{image}, DaemonConfig: quietConfig + "[keeper]\npatience = \"5m\"\n"})
	ref := s.pull(image)
	s.startIdle(ref, "box")
	s.must(s.StopSnapshotter())
	keeper, err := s.KeeperPID()
	s.must(err)
	s.must(unix.Kill(keeper, unix.SIGSTOP))
	read := make(chan error, 1)
	go func() { read <- s.tryRead("box") }()
	began := time.Now()
	s.must(s.StartSnapshotter(s.ctx))
	t.Logf("started after %v", time.Since(began))
	if log := s.daemonLog(); !strings.Contains(log, "until the keeper answers") || strings.Contains(log, "restart them") {
		t.Errorf("log:\n%s", log)
	}
	ctx, release := s.leased()
	defer release()
	sn := s.Client().SnapshotService(lab.Snapshotter)
	if _, err := sn.Prepare(ctx, "new", s.topChain(ref)); err == nil || !strings.Contains(err.Error(), "it is not known which layers are answered for") {
		t.Errorf("a new container: %v", err)
	}
	if n := s.metric("erofs_snapshotter_keeper_connected"); n != 0 {
		t.Error("the keeper is connected")
	}
	select {
	case err := <-read:
		t.Errorf("the reader did not wait: %v", err)
	default:
	}
	s.must(unix.Kill(keeper, unix.SIGCONT))
	s.must(<-read)
	s.within(time.Minute, "the daemon knows what the keeper holds", func() error {
		_, err := sn.Prepare(ctx, "new", s.topChain(ref))
		return err
	})
	if now, err := s.KeeperPID(); err != nil || now != keeper {
		t.Errorf("keeper %d, %v; it was %d", now, err, keeper)
	}
	s.must(sn.Remove(ctx, "new"))
	s.readsRight("box")
	s.end("box")
	s.removeImages(ref)
	s.released()
}
