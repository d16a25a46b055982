package watch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/cachefiles"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// playedKernel stands for the kernel of caches: there are the superblocks that the test lists, and nobody asks but the test.
type playedKernel struct {
	t    *testing.T
	list string // the directory of superblocks
	err  error  // of open and adopt

	mu      sync.Mutex
	devices []*playedDevice // in the order in which they were opened or adopted
}

// playedDevice is a cachefiles.Device.
type playedDevice struct {
	o       cachefiles.Options
	file    *os.File
	adopted bool

	mu     sync.Mutex
	served bool
	closed bool
	broken chan error // what Serve ends with
	sweeps int
	full   bool
	dead   error // what Check says
}

func newPlayedKernel(t *testing.T) *playedKernel {
	return &playedKernel{t: t, list: t.TempDir()}
}

// daemon is one with a cache of that kernel, which does not run, so that the test says when it looks.
func (k *playedKernel) daemon(w *world) *daemon {
	d := w.prepare()
	d.kernel = kernel{superblocks: k.list, fetch: thisKernel.fetch, open: k.open, adopt: func(f *os.File, o cachefiles.Options) (device, error) {
		if k.err != nil {
			return nil, errors.Join(k.err, f.Close())
		}
		return k.add(&playedDevice{o: o, file: f, adopted: true}), nil
	}}
	return d
}

func (k *playedKernel) open(o cachefiles.Options) (device, error) {
	if k.err != nil {
		return nil, k.err
	}
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	must(k.t, err)
	k.t.Cleanup(func() { must(k.t, unix.Close(ends[1])) })
	return k.add(&playedDevice{o: o, file: os.NewFile(uintptr(ends[0]), "device")}), nil
}

func (k *playedKernel) add(d *playedDevice) *playedDevice {
	k.mu.Lock()
	defer k.mu.Unlock()
	d.broken = make(chan error, 1)
	k.devices = append(k.devices, d)
	return d
}

// last is the device that was opened or adopted last.
func (k *playedKernel) last() *playedDevice {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.devices[len(k.devices)-1]
}

// mount lists a superblock, by as much of its name as a kernel shows.
func (k *playedKernel) mount(c *Cookies) (unmount func()) {
	k.t.Helper()
	path := filepath.Join(k.list, (c.Domain + "," + c.Meta)[:36])
	must(k.t, os.Mkdir(path, 0o700))
	return func() { must(k.t, os.Remove(path)) }
}

func (d *playedDevice) Serve(ctx context.Context) error {
	d.mu.Lock()
	d.served = true
	d.mu.Unlock()
	select {
	case err := <-d.broken:
		return err
	case <-ctx.Done():
		return nil
	}
}

func (d *playedDevice) File() *os.File { return d.file }

func (d *playedDevice) Check() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dead
}

func (d *playedDevice) WantsCulling() (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.full, nil
}

func (d *playedDevice) Sweep() (int, int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sweeps++
	return 1, 4096, nil
}

func (d *playedDevice) Stats() cachefiles.Stats { return cachefiles.Stats{} }

func (d *playedDevice) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return d.file.Close()
}

func (d *playedDevice) state() (served, closed bool, sweeps int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.served, d.closed, d.sweeps
}

// deviceHeld says who answers for the device that the keeper holds, "" if it holds none.
func (w *world) deviceHeld() keeper.State {
	w.t.Helper()
	r, err := keeper.Status(w.t.Context(), w.address)
	must(w.t, err)
	return r.Device
}

// mountOver makes an instance ready for a mount over the cache.
func (d *daemon) mountOver(in *instance) *Cookies {
	d.w.t.Helper()
	how, err := d.Mount(d.w.t.Context(), in.name)
	must(d.w.t, err)
	if how == nil || how.Cookies == nil || how.Check != nil {
		d.w.t.Fatalf("to be mounted by %+v", how)
	}
	return how.Cookies
}

// newCached has a daemon with a cache, which does not run, and an instance that is open.
func newCached(t *testing.T) (*world, *playedKernel, *daemon, *instance) {
	t.Helper()
	w, k := newWorld(t), newPlayedKernel(t)
	d := k.daemon(w)
	d.UseCache()
	must(t, d.Connect(context.WithoutCancel(t.Context())))
	in := w.usual(1)
	d.open(in)
	return w, k, d, in
}

// long has it be so late that mounts and sweeps do not wait for each other any more.
func (d *daemon) long() {
	c := d.theCache()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.prepared = c.prepared.Add(-2 * mountTime)
}

// TestNewCache: a cache is new, what earlier ones have left is deleted, and it is tried. The keeper has it before anything is mounted.
func TestNewCache(t *testing.T) {
	w, k := newWorld(t), newPlayedKernel(t)
	left := filepath.Join(w.root, "fscache", domainPrefix+"former", "cache")
	must(t, os.MkdirAll(left, 0o700))
	d := k.daemon(w)
	var tried Cookies
	d.o.Cache.Try = func(_ context.Context, c Cookies) error {
		tried = c
		for key, want := range map[string]string{c.Meta: "meta of the trial", c.Data: "data"} {
			o, err := k.last().o.Lookup("erofs,"+c.Domain, key)
			must(t, err)
			if got, err := readAll(t.Context(), o); err != nil || string(got) != want {
				t.Errorf("%s: %q, %v", key, got, err)
			}
		}
		return nil
	}
	if d.Domain() != "" || d.CacheReport() != nil {
		t.Error("there is a cache before there is one")
	}
	d.UseCache()
	must(t, d.Connect(t.Context()))
	must(t, d.Ready())
	device := k.last()
	eventually(t, "it is served", func() bool { served, _, _ := device.state(); return served })
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a former cache has left: %v", err)
	}
	if info, err := os.Stat(device.o.Dir); err != nil || info.Mode().Perm() != 0o700 || filepath.Base(device.o.Dir) != d.Domain() {
		t.Errorf("directory %s of domain %s: %v, %v", device.o.Dir, d.Domain(), info, err)
	}
	if tried.Domain != d.Domain() || len(tried.Domain) != domainBytes || len(tried.Domain) > cachefiles.DomainMost {
		t.Errorf("tried %+v in domain %q", tried, d.Domain())
	}
	if held := w.deviceHeld(); held != "" {
		t.Errorf("held before anything is mounted: %s", held)
	}
	in := w.usual(1)
	d.open(in)
	first, second := d.mountOver(in), d.mountOver(in)
	if w.deviceHeld() == "" {
		t.Error("mounted, and the keeper does not have the device")
	}
	if first.Data != second.Data || first.Meta == second.Meta || first.Domain != d.Domain() {
		t.Errorf("names of two mounts: %+v, %+v", first, second)
	}
	for name, want := range map[string]int64{first.Meta: fileSize(t, filepath.Join(in.dir, metaName)), first.Data: fileSize(t, filepath.Join(in.dir, blob.DataName))} {
		if key, err := cachefiles.ParseKey(name); err != nil || key.Instance != in.name || key.Size != want {
			t.Errorf("%s: %+v, %v", name, key, err)
		}
	}
}

// TestNoCache: without one nothing is to be mounted over it, and it is known why. A self-test that fails leaves nothing.
func TestNoCache(t *testing.T) {
	for name, try := range map[string]error{"open": nil, "try": errors.New("wrong bytes")} {
		t.Run(name, func(t *testing.T) {
			w, k := newWorld(t), newPlayedKernel(t)
			want := try
			if try == nil {
				k.err = cachefiles.ErrUnfit
				want = k.err
			}
			d := k.daemon(w)
			d.o.Cache.Try = func(context.Context, Cookies) error { return try }
			d.UseCache()
			must(t, d.Connect(t.Context()))
			if err := d.Ready(); !errors.Is(err, want) {
				t.Errorf("ready: %v", err)
			}
			in := w.usual(1)
			d.open(in)
			if how, err := d.Mount(t.Context(), in.name); !errors.Is(err, want) {
				t.Errorf("to be mounted by %+v, %v", how, err)
			}
			if left, err := os.ReadDir(filepath.Join(w.root, "fscache")); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			if try != nil {
				if _, closed, _ := k.last().state(); !closed {
					t.Error("the device is open")
				}
			}
		})
	}
}

// TestCacheTakenOver: the next process goes on with the cache that the keeper holds, and knows what is mounted before it is asked; also if nothing new
// is mounted in that way.
func TestCacheTakenOver(t *testing.T) {
	w, k := newWorld(t), newPlayedKernel(t)
	first := k.daemon(w)
	first.UseCache()
	must(t, first.Connect(t.Context()))
	in, other := w.usual(1), w.usual(2)
	first.open(in)
	first.open(other)
	k.mount(first.mountOver(in))
	dir := k.last().o.Dir
	domain := first.Domain()
	first.stop()

	second := k.daemon(w)
	must(t, second.Connect(t.Context()))
	device := k.last()
	if !device.adopted || device.o.Dir != dir || second.Domain() != domain {
		t.Fatalf("adopted: %t, directory %s, domain %s; before %s, %s", device.adopted, device.o.Dir, second.Domain(), dir, domain)
	}
	eventually(t, "it is served", func() bool { served, _, _ := device.state(); return served })
	if second.report(in) == nil || second.report(other) != nil {
		t.Error("open is not what is mounted")
	}
	if live, dead, err := second.OverCache(in.name); !live || dead || err != nil || !second.Watches(in.name) {
		t.Errorf("mounted: live %t, dead %t, %v", live, dead, err)
	}
	if live, dead, err := second.OverCache(other.name); live || dead || err != nil {
		t.Errorf("not mounted: live %t, dead %t, %v", live, dead, err)
	}
	if r := second.CacheReport(); r == nil || r.Mounted != 1 || r.Domain != domain {
		t.Errorf("report %+v", r)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
}

// TestCacheNotTakenOver: nobody answers for a device that cannot be taken over, so the keeper closes it, and what was mounted is dead.
func TestCacheNotTakenOver(t *testing.T) {
	w, k := newWorld(t), newPlayedKernel(t)
	first := k.daemon(w)
	first.UseCache()
	must(t, first.Connect(t.Context()))
	in := w.usual(1)
	first.open(in)
	k.mount(first.mountOver(in))
	first.stop()

	k.err = errors.New("no restore today")
	second := k.daemon(w)
	second.UseCache()
	must(t, second.Connect(t.Context()))
	if err := second.Ready(); !errors.Is(err, k.err) {
		t.Errorf("ready: %v", err)
	}
	if held := w.deviceHeld(); held != "" {
		t.Errorf("the keeper holds the device: %s", held)
	}
	if live, dead, err := second.OverCache(in.name); live || !dead || err != nil {
		t.Errorf("live %t, dead %t, %v", live, dead, err)
	}
}

// TestCacheLooks: what was unmounted is culled, not while something is just being mounted; and the keeper gives the device up when nothing is.
func TestCacheLooks(t *testing.T) {
	w, k := newWorld(t), newPlayedKernel(t)
	d := k.daemon(w)
	d.UseCache()
	must(t, d.Connect(t.Context()))
	in, other := w.usual(1), w.usual(2)
	d.open(in)
	d.open(other)
	unmount, unmountOther := k.mount(d.mountOver(in)), k.mount(d.mountOver(other))
	device := k.last()
	swept := func(want int) {
		t.Helper()
		d.theCache().look()
		if _, _, sweeps := device.state(); sweeps != want {
			t.Errorf("culled %d times, want %d", sweeps, want)
		}
	}
	swept(0)
	unmount()
	swept(0) // something was just mounted
	d.long()
	swept(1)
	swept(2) // the kernel gives files their names some time after
	c := d.theCache()
	c.mu.Lock()
	c.unmounted = time.Now().Add(-sweepAgain)
	c.mu.Unlock()
	swept(3)
	swept(3)
	if w.deviceHeld() == "" {
		t.Error("given up while something is mounted")
	}
	device.mu.Lock()
	device.full = true
	device.mu.Unlock()
	swept(4)
	if r := d.CacheReport(); !r.WantsSpace || r.CulledBytes != 4*4096 || r.Mounted != 1 {
		t.Errorf("report %+v", r)
	}
	device.mu.Lock()
	device.full = false
	device.mu.Unlock()
	unmountOther()
	swept(5)
	if held := w.deviceHeld(); held != "" {
		t.Errorf("held, and nothing is mounted: %s", held)
	}
	k.mount(d.mountOver(in))
	if w.deviceHeld() == "" {
		t.Error("mounted again, and the keeper does not have the device")
	}
}

// TestCacheOfNextKeeper: a keeper that comes later gets the device, also if the first try fails.
func TestCacheOfNextKeeper(t *testing.T) {
	w, k := newWorld(t), newPlayedKernel(t)
	d := k.daemon(w)
	d.UseCache()
	must(t, d.Connect(t.Context()))
	in := w.usual(1)
	d.open(in)
	k.mount(d.mountOver(in))
	w.killKeeper()
	w.startKeeper()
	d.setKeeper(nil)
	ended, cancel := context.WithCancel(t.Context())
	c := d.theCache()
	client, _, err := keeper.Redial(t.Context(), w.address)
	must(t, err)
	cancel()
	if err := c.hold(ended, client); err == nil {
		t.Fatal("held, though nobody waited for that")
	}
	must(t, client.Close())
	must(t, d.reconnect(t.Context()))
	if w.deviceHeld() == "" {
		t.Error("the keeper does not have the device")
	}
}

// TestSuperblocks: only those over caches of ours count, and others are not taken for ones of an instance.
func TestSuperblocks(t *testing.T) {
	k := kernel{superblocks: t.TempDir()}
	id := strings.Repeat("ab", 32)
	for _, name := range []string{"esabcdef,m1f." + id + ".1000", "esabcdeg,m1f.abababab", "features", "loop0", "esabcdef,other", "nydus,m1." + id, "esabcdefg,m1." + id} {
		must(t, os.Mkdir(filepath.Join(k.superblocks, name), 0o700))
	}
	list, err := k.listSuperblocks()
	if err != nil || len(list) != 2 || list[0] != (superblock{"esabcdef", id}) || list[1] != (superblock{"esabcdeg", "abababab"}) {
		t.Errorf("got %+v, %v", list, err)
	}
	if !list[1].isOf(id) || list[1].isOf(strings.Repeat("cd", 32)) {
		t.Error("it is of another instance")
	}
	k.superblocks += "/none"
	if list, err := k.listSuperblocks(); err != nil || len(list) > 0 {
		t.Errorf("without EROFS: %v, %v", list, err)
	}
}

var _ device = (*cachefiles.Device)(nil)

// TestBusyDevice: a process that has just ended may keep it busy for a moment.
func TestBusyDevice(t *testing.T) {
	tries := 0
	k := kernel{open: func(cachefiles.Options) (device, error) {
		if tries++; tries < 3 {
			return nil, cachefiles.ErrBusy
		}
		return &playedDevice{}, nil
	}}
	if d, err := k.openWhenFree(t.Context(), cachefiles.Options{}); err != nil || d == nil {
		t.Error(err)
	}
	tries = -1000
	ended, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := k.openWhenFree(ended, cachefiles.Options{}); !errors.Is(err, cachefiles.ErrBusy) {
		t.Errorf("got %v", err)
	}
}
