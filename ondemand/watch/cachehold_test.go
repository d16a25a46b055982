package watch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/cachefiles"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// TestKeeperHoldsWhatIsMounted: the keeper has the device while anything is mounted, also if it was mounted long after it was prepared.
func TestKeeperHoldsWhatIsMounted(t *testing.T) {
	w := newWorld(t)
	d := newPlayedKernel(t).daemon(w)
	d.UseCache()
	must(t, d.Connect(context.WithoutCancel(t.Context())))
	c := d.theCache()
	held := func() bool {
		r, err := keeper.Status(t.Context(), w.address)
		must(t, err)
		return r.Device != ""
	}
	c.settleHolding(false)
	if held() {
		t.Error("it is held though nothing is mounted")
	}
	c.settleHolding(true)
	if !held() {
		t.Error("it is not held though something is mounted")
	}
	c.prepared = time.Now()
	c.settleHolding(false)
	if !held() {
		t.Error("it was dropped during a mount")
	}
	c.prepared = time.Now().Add(-2 * mountTime)
	c.settleHolding(false)
	if held() {
		t.Error("it is held though nothing is mounted any more")
	}
}

// TestSweepWaitsForMounts: nothing is culled while something is mounted that may use it, but for ever that does not last.
func TestSweepWaitsForMounts(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		prepared, unswept time.Duration // ago; 0: never
		want              bool
	}{
		"nothing to cull": {0, 0, false},
		"no mount":        {0, time.Second, true},
		"mount":           {time.Second, 10 * time.Second, false},
		"was mounted":     {10 * time.Second, time.Second, true},
		"always mounts":   {time.Second, 2 * mountTime, true},
	} {
		k := &cache{}
		if c.prepared > 0 {
			k.prepared = now.Add(-c.prepared)
		}
		if c.unswept > 0 {
			k.unswept = now.Add(-c.unswept)
		}
		if got := k.sweepable(now); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// TestCacheIsTriedAgain: what keeps the daemon from having a cache may pass.
func TestCacheIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	d := w.prepare()
	var tries atomic.Int64
	d.cacheRetry = time.Millisecond
	d.kernel.open = func(cachefiles.Options) (device, error) {
		tries.Add(1)
		return nil, cachefiles.ErrNotSupported
	}
	d.UseCache()
	must(t, d.Connect(context.WithoutCancel(t.Context())))
	if err := d.Ready(); !errors.Is(err, cachefiles.ErrNotSupported) {
		t.Errorf("ready: %v", err)
	}
	d.run()
	eventually(t, "it is tried again", func() bool { return tries.Load() > 2 })
}

// TestUnsureOfDevice: a keeper that does not say whether it has the device may hold what is mounted.
func TestUnsureOfDevice(t *testing.T) {
	w := newWorld(t)
	d := w.prepare()
	var tries atomic.Int64
	d.kernel.fetch = func(ctx context.Context, c *keeper.Client) (*keeper.HeldDevice, error) {
		if tries.Add(1) == 1 {
			return nil, context.DeadlineExceeded
		}
		return c.Device(ctx)
	}
	if err := d.Connect(context.WithoutCancel(t.Context())); !errors.Is(err, ErrUnsure) || d.Unsure() == nil {
		t.Errorf("connected: %v", err)
	}
	d.run()
	eventually(t, "it is known", func() bool { return d.Unsure() == nil && d.Ready() == nil })
}

// TestFormerCachesAreDeleted also when there will be no other.
func TestFormerCachesAreDeleted(t *testing.T) {
	w := newWorld(t)
	former := filepath.Join(w.root, "fscache", domainPrefix+"former", "cache")
	must(t, os.MkdirAll(former, 0o700))
	w.daemon()
	if _, err := os.Stat(former); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", former, err)
	}
}

// TestCacheLost: a device that cannot be served is given up, by the keeper too, so that nobody waits for it.
func TestCacheLost(t *testing.T) {
	w, k := newWorld(t), newPlayedKernel(t)
	d := k.daemon(w)
	d.UseCache()
	must(t, d.Connect(context.WithoutCancel(t.Context())))
	in := w.usual(1)
	d.open(in)
	d.mountOver(in)
	if w.deviceHeld() == "" {
		t.Fatal("the keeper does not have the device")
	}
	k.last().broken <- errors.New("broken")
	eventually(t, "it is given up", func() bool {
		_, closed, _ := k.last().state()
		return closed && w.deviceHeld() == "" && d.Ready() != nil
	})
}
