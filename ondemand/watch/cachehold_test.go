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

// TestKeeperIsToldAgain: a keeper that was told to give the device up, and did not say that it has, may do so later.
func TestKeeperIsToldAgain(t *testing.T) {
	w, _, d, _ := newCached(t)
	c := d.theCache()
	c.settleHolding(true)
	client := d.keeper
	must(t, client.DropDevice(t.Context()))
	d.stop() // no call to a keeper gets an answer
	c.prepared = time.Now().Add(-2 * mountTime)
	c.settleHolding(false)
	if !c.held || c.sure {
		t.Fatalf("held %t, sure %t", c.held, c.sure)
	}
	client, _, err := keeper.Redial(t.Context(), w.address)
	must(t, err)
	defer client.Close()
	c.device = &playedDevice{file: deviceFile(t)}
	must(t, c.prepare(t.Context(), client))
	if w.deviceHeld() == "" || !c.sure {
		t.Error("something is mounted, and the keeper does not have the device")
	}
}

func deviceFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}
