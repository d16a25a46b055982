package integration

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/slowproxy"
)

// TestInterrupted: a pull that ends in the middle of its layers. The registry sends nothing more and nothing of the layers is left; the next
// pull works, and when its image is removed nothing is left either.
func TestInterrupted(t *testing.T) {
	for name, interrupt := range map[string]func(s *story, giveUp func()) error{
		"client gives up":      func(_ *story, giveUp func()) error { giveUp(); return nil },
		"containerd is killed": func(s *story, _ func()) error { return errors.Join(s.KillContainerd(), s.StartContainerd(s.ctx)) },
		"daemon is killed":     func(s *story, _ func()) error { return errors.Join(s.KillSnapshotter(), s.StartSnapshotter(s.ctx)) },
	} {
		t.Run(name, func(t *testing.T) { interrupted(t, interrupt) })
	}
}

func interrupted(t *testing.T, interrupt func(*story, func()) error) {
	s := newStory(t, storyTime, remoteOptions(lab.Options{}))
	slow, err := slowproxy.New(s.Host, slowproxy.Options{BitsPerSecond: 160_000_000})
	s.must(err)
	t.Cleanup(func() { _ = slow.Close() })
	const layerBytes = 30 << 20 // 1.5 s on the link
	s.compose("interrupted-v1", s.newLayer("first", layerBytes), s.newLayer("second", layerBytes))
	ref := s.RefAt(slow.Addr(), "interrupted-v1")

	ctx, giveUp := context.WithCancel(s.ctx)
	defer giveUp()
	pulled := make(chan error, 1)
	go func() { pulled <- s.transfer(ctx, ref) }()
	s.within(20*time.Second, "layers arrive", func() error {
		if n := slow.Downstream(); n < layerBytes/8 {
			return fmt.Errorf("%d bytes so far", n)
		}
		return nil
	})
	s.must(interrupt(s, giveUp))
	if err := <-pulled; err == nil {
		t.Fatal("the pull succeeded: it was not interrupted")
	}
	s.within(10*time.Second, "the link is quiet", func() error {
		before := slow.Downstream()
		time.Sleep(200 * time.Millisecond)
		if now := slow.Downstream(); now > before {
			return fmt.Errorf("%d more bytes", now-before)
		}
		return nil
	})
	if n := slow.Downstream(); n > layerBytes*3/4 {
		t.Errorf("%d bytes were sent for a pull that nobody waited for", n)
	}
	s.endLeases()
	s.within(reconnectTime, "daemon found again", s.tryCollect)
	s.released()

	s.must(s.transfer(s.ctx, ref))
	s.neverFellBack()
	s.shows(s.ctx, ref, "second", "none")
	s.removeFrom(s.ctx, ref)
	s.released()
}

// endLeases deletes containerd's leases. The one of a pull whose client or containerd has gone would keep for a day what that pull began with,
// and by that the snapshots of later pulls of the image.
func (s *story) endLeases() {
	s.t.Helper()
	manager := s.Client().LeasesService()
	all, err := manager.List(s.ctx)
	s.must(err)
	for _, l := range all {
		s.must(manager.Delete(s.ctx, l))
	}
}
