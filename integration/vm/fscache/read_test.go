package fscache

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/backendtest"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/cachefiles"
)

// TestRead mounts, reads everything and compares. Nothing is asked for twice, and nothing again by the next mount.
func TestRead(t *testing.T) {
	c := open(t)
	i := c.instance(t, c.domain, 1024)
	img := i.mountable()
	target := mount(t, img)
	if !hasSuperblock(t, img) {
		t.Errorf("%s is not among %q", img.Cookies.Meta, superblocks(t))
	}
	expect(t, target, i.content)
	c.once(t, i, 1024)

	unmount(t, target)
	if hasSuperblock(t, img) {
		t.Errorf("%s is still there", img.Cookies.Meta)
	}
	eventually(t, "both are closed", func() bool { return c.d.Stats().Closes == 2 && c.d.Stats().Objects == 0 })
	expect(t, mount(t, i.mountable()), i.content)
	c.once(t, i, 1024)
	if s := c.d.Stats(); s.Opens != 4 || s.Failed+s.OpenFailed+s.Strangers+s.Garbled+s.Unanswered+s.Repeated != 0 {
		t.Errorf("%+v", s)
	}
	t.Logf("%d READs", c.d.Stats().Reads)
}

// once expects that each page of the data was asked for once.
func (c *cache) once(t *testing.T, i instance, pages int) {
	t.Helper()
	asked := c.asked(i.dataKey())
	for p, n := range asked {
		if n != 1 {
			t.Errorf("page %d was asked for %d times", p, n)
		}
	}
	if len(asked) != pages {
		t.Errorf("%d pages of %d were asked for", len(asked), pages)
	}
}

// TestShared mounts an image twice at a time: the data blob is opened once and each byte asked for once.
func TestShared(t *testing.T) {
	c := open(t)
	i := c.instance(t, c.domain, 256)
	one, two := i.mountable(), i.mountable()
	a, b := mount(t, one), mount(t, two)
	for _, img := range []fsbackend.Image{one, two} {
		if !hasSuperblock(t, img) {
			t.Errorf("%s is not among %q", img.Cookies.Meta, superblocks(t))
		}
	}
	expect(t, a, i.content)
	expect(t, b, i.content)
	c.once(t, i, 256)
	if n := c.opens[i.dataKey()]; n != 1 {
		t.Errorf("the data was opened %d times", n)
	}
	if n := c.d.Stats().Objects; n != 3 {
		t.Errorf("%d objects", n)
	}
	unmount(t, a)
	if _, err := block(t, b, 7); err != nil {
		t.Error(err)
	}
	unmount(t, b)
	eventually(t, "all are closed", func() bool { return c.d.Stats().Objects == 0 })

	// The same fsid a second time.
	a = mount(t, one)
	if _, err := tryMount(t, one); !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EBUSY) {
		t.Errorf("the same fsid: %v", err)
	} else {
		t.Log(err)
	}
	expect(t, a, i.content)
}

// TestTail has data that end within a page: what the kernel sees behind are zeros.
func TestTail(t *testing.T) {
	c := open(t)
	content := slices.Repeat([]byte("tail"), 4*4096)[:8*4096+500]
	clear(content[8*4096-100 : 8*4096])
	i := c.of(t, c.domain, content)
	i.dataSize -= 100
	expect(t, mount(t, i.mountable()), content)
}

// TestFailedRead fails READs: the reader gets EIO, and right bytes later.
func TestFailedRead(t *testing.T) {
	c := open(t)
	var failing atomic.Bool
	failing.Store(true)
	c.fail = func(context.Context, string, int64, int64) error {
		if failing.Load() {
			return errors.New("no registry")
		}
		return nil
	}
	i := c.instance(t, c.domain, 64)
	target := mount(t, i.mountable())
	for n := range 3 {
		start := time.Now()
		if _, err := block(t, target, n); !errors.Is(err, unix.EIO) {
			t.Errorf("read: %v", err)
		}
		t.Logf("EIO after %v", time.Since(start))
	}
	failing.Store(false)
	expect(t, target, i.content)
	if !strings.Contains(c.log.String(), "no registry") {
		t.Errorf("log: %s", c.log)
	}
}

// TestDeadline has a Fill that hangs.
func TestDeadline(t *testing.T) {
	c := open(t, func(o *cachefiles.Options) { o.Deadline = time.Second })
	var hang atomic.Bool
	hang.Store(true)
	c.fail = func(ctx context.Context, _ string, _, _ int64) error {
		if hang.Load() {
			<-ctx.Done()
		}
		return ctx.Err()
	}
	i := c.instance(t, c.domain, 64)
	target := mount(t, i.mountable())
	start := time.Now()
	if _, err := block(t, target, 1); !errors.Is(err, unix.EIO) {
		t.Errorf("read: %v", err)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("after %v", took)
	}
	hang.Store(false)
	expect(t, target, i.content)
}

// TestUnknown mounts what nobody knows: without the image the mount fails soon, and says why; without the data their reads fail.
func TestUnknown(t *testing.T) {
	c := open(t)
	i := c.instance(t, c.domain, 4)
	img := i.mountable()
	img.Cookies.Meta = "unknown"
	start := time.Now()
	if _, err := tryMount(t, img); !errors.Is(err, unix.EIO) || time.Since(start) > 15*time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
	img = i.mountable()
	img.Cookies.Data = "unknowndata"
	start = time.Now()
	target, err := tryMount(t, img)
	if err != nil {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
	for range 3 {
		start = time.Now()
		if _, err := block(t, target, 0); !isDead(err) || time.Since(start) > 15*time.Second {
			t.Errorf("read after %v: %v", time.Since(start), err)
		}
	}
	if n := c.d.Stats().Unknown; n != 2 {
		t.Errorf("%d unknown", n)
	}
	expect(t, mount(t, i.mountable()), i.content)
}

// TestBackend is the contract of fsbackend.
func TestBackend(t *testing.T) {
	c := open(t)
	backendtest.Run(t, func(*testing.T) fsbackend.Backend { return backend }, func(t testing.TB, dir string, n int) fsbackend.Image {
		i := c.of(t, c.domain, backendtest.Content(n))
		files := i.image
		img := i.mountable()
		img.Meta, img.Data = dir+"/meta.erofs", dir+"/data"
		if err := errors.Join(os.Rename(files.Meta, img.Meta), os.Rename(files.Data, img.Data),
			os.Symlink(img.Meta, files.Meta), os.Symlink(img.Data, files.Data)); err != nil {
			t.Fatal(err)
		}
		return img
	})
}

// TestUnserved has nobody serve for a while: a mount waits, and an unmount does not.
func TestUnserved(t *testing.T) {
	c := open(t)
	i, j := c.instance(t, c.domain, 16), c.instance(t, c.domain, 16)
	target := mount(t, i.mountable())
	expect(t, target, i.content)
	c.end()
	start := time.Now()
	img := i.mountable()
	unmount(t, target)
	t.Logf("unmounted in %v", time.Since(start))
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("unmounted after %v", took)
	}
	next := t.TempDir()
	mounted := make(chan error, 1)
	start = time.Now()
	go func() { mounted <- backend.Mount(context.Background(), j.mountable(), next) }()
	select {
	case err := <-mounted:
		t.Errorf("not waited for: %v", err)
	case <-time.After(3 * time.Second):
	}
	c.end = serve(t, c.d)
	if err := <-mounted; err != nil {
		t.Errorf("after %v: %v", time.Since(start), err)
	} else {
		t.Logf("mounted after %v", time.Since(start))
		expect(t, next, j.content)
		unmount(t, next)
	}
	expect(t, mount(t, img), i.content)
}

// TestReaderKilled kills a process that waits for data.
func TestReaderKilled(t *testing.T) {
	c := open(t)
	began := make(chan struct{}, 100)
	c.fail = hang(began)
	i := c.instance(t, c.domain, 16)
	target := mount(t, i.mountable())
	reader := exec.Command("busybox", "cat", filepath.Join(target, backendtest.FileName))
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	<-began
	start := time.Now()
	if err := reader.Process.Kill(); err != nil {
		t.Error(err)
	}
	reader.Wait()
	t.Logf("ended after %v", time.Since(start))
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("ended after %v", took)
	}
	unmount(t, target)
}
