package watch

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"testing"
)

// loseCache has a daemon that has mounted an instance over a cache, which breaks in the given way.
func loseCache(t *testing.T, breaks func(*daemon, *playedDevice)) (*world, *playedKernel, *daemon, *instance) {
	t.Helper()
	w, k, d, in := newCached(t)
	k.mount(d.mountOver(in))
	if w.deviceHeld() == "" {
		t.Fatal("the keeper does not have the device")
	}
	breaks(d, k.last())
	return w, k, d, in
}

// TestCacheLost: a device that cannot be served, or whose cache the kernel has given up, is given up, by the keeper too, so that nobody waits for it.
// There is another one later, and whoever has mounts over the first is told that they are dead.
func TestCacheLost(t *testing.T) {
	cause := errors.New("broken")
	for name, breaks := range map[string]func(*daemon, *playedDevice){
		"served": func(_ *daemon, dev *playedDevice) { dev.broken <- cause },
		"looked at": func(d *daemon, dev *playedDevice) {
			dev.mu.Lock()
			dev.dead = cause
			dev.mu.Unlock()
			d.theCache().look()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, k, d, in := loseCache(t, breaks)
			first := k.last()
			eventually(t, "it is given up", func() bool {
				_, closed, _ := first.state()
				return closed && w.deviceHeld() == ""
			})
			if err := d.Ready(); !errors.Is(err, cause) {
				t.Errorf("ready: %v", err)
			}
			if live, dead, err := d.OverCache(in.name); live || !dead || err != nil {
				t.Errorf("live %t, dead %t, %v", live, dead, err)
			}
			var told atomic.Int64
			d.o.Lost = func(context.Context) error {
				told.Add(1)
				return nil
			}
			d.cacheRetry = 0
			d.run()
			eventually(t, "there is another one", func() bool { return d.Ready() == nil && told.Load() == 1 })
			if _, err := os.Stat(first.o.Dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("what the first cache has left: %v", err)
			}
			k.mount(d.mountOver(in))
			if w.deviceHeld() == "" {
				t.Error("mounted again, and the keeper does not have the device")
			}
		})
	}
}

// TestLostDeviceIsDropped: the keeper gives a lost device up as soon as it can be told; before that there is no other, and what the first one has is
// left alone.
func TestLostDeviceIsDropped(t *testing.T) {
	w, k, d, _ := loseCache(t, func(d *daemon, dev *playedDevice) {
		client := d.keeper
		d.setKeeper(nil)
		t.Cleanup(func() { client.Close() })
		dev.broken <- errors.New("broken")
	})
	first := k.last()
	eventually(t, "it is given up", func() bool { _, closed, _ := first.state(); return closed })
	d.cacheRetry = 0
	d.retryCache(t.Context())
	if k.last() != first || w.deviceHeld() == "" {
		t.Fatal("there is another cache")
	}
	if _, err := os.Stat(first.o.Dir); err != nil {
		t.Error(err)
	}
	must(t, d.reconnect(t.Context()))
	must(t, d.afterLoss(t.Context()))
	if held := w.deviceHeld(); held != "" {
		t.Errorf("held: %s", held)
	}
	d.retryCache(t.Context())
	must(t, d.Ready())
}

// TestCacheLostAtOnce: one that is lost while it is made is not taken for one that is there.
func TestCacheLostAtOnce(t *testing.T) {
	w, k := newWorld(t), newPlayedKernel(t)
	d := k.daemon(w)
	cause := errors.New("broken")
	d.o.Cache.Try = func(context.Context, Cookies) error {
		k.last().broken <- cause
		eventually(t, "it is lost", func() bool { return d.theCache() == nil })
		return nil
	}
	d.UseCache()
	must(t, d.Connect(context.WithoutCancel(t.Context())))
	eventually(t, "it is known", func() bool { return errors.Is(d.Ready(), cause) })
	d.o.Cache.Try = nil
	d.cacheRetry = 0
	eventually(t, "the keeper is told", func() bool { must(t, d.afterLoss(t.Context())); return !d.left() })
	d.retryCache(t.Context())
	must(t, d.Ready())
}

func (d *daemon) left() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.deviceLeft
}
