package fscache

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/cachefiles"
)

// hang is a Fill that says when it begins, and ends with its context.
func hang(began chan struct{}) func(context.Context, string, int64, int64) error {
	return func(ctx context.Context, _ string, _, _ int64) error {
		began <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
}

func used(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

// cacheFiles are the files below the cache directory, by name.
func cacheFiles(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(filepath.Join(dir, "cache"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			files[e.Name()] = filepath.Dir(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestCull removes cache files that no mount uses, and gets the space back.
func TestCull(t *testing.T) {
	c := open(t)
	i, j := c.instance(t, c.domain, 2048), c.instance(t, c.domain, 64)
	before := used(t, c.dir)
	a, b := mount(t, i.mountable()), mount(t, j.mountable())
	expect(t, a, i.content)
	expect(t, b, j.content)
	unmount(t, a)
	unmount(t, b)
	eventually(t, "four files are there", func() bool { return len(cacheFiles(t, c.dir)) == 4 })
	b = mount(t, j.mountable())
	unix.Sync()
	t.Logf("used: %d", used(t, c.dir)-before)

	files := cacheFiles(t, c.dir)
	dir := files["D"+j.dataKey()]
	if dir == "" {
		t.Fatalf("no %s", j.dataKey())
	}
	if err := c.d.Cull(dir, "D"+j.dataKey()); !errors.Is(err, cachefiles.ErrInUse) {
		t.Errorf("culled what is in use: %v", err)
	}
	if used, err := c.d.InUse(dir, "D"+j.dataKey()); !used || err != nil {
		t.Errorf("in use: %t, %v", used, err)
	}
	if used, err := c.d.InUse(files["D"+i.dataKey()], "D"+i.dataKey()); used || err != nil {
		t.Errorf("not in use: %t, %v", used, err)
	}
	n, bytes, err := c.d.Sweep()
	if n != 3 || bytes < 2048*4096 || err != nil {
		t.Errorf("swept %d files, %d bytes, %v", n, bytes, err)
	}
	unix.Sync()
	t.Logf("swept %d files, %d bytes, used: %d", n, bytes, used(t, c.dir)-before)
	eventually(t, "the space is free", func() bool { return used(t, c.dir)-before < 2<<20 })
	expect(t, b, j.content)
	expect(t, mount(t, i.mountable()), i.content)
	if err := c.d.Cull(dir, "Dnone"); err != nil {
		t.Errorf("what is not there: %v", err)
	}
}

// TestSweepBusy sweeps while images are mounted and unmounted.
func TestSweepBusy(t *testing.T) {
	c := open(t)
	var list []instance
	for range 4 {
		list = append(list, c.instance(t, c.domain, 32))
	}
	ended := make(chan int)
	stop := make(chan struct{})
	go func() {
		total := 0
		defer func() { ended <- total }()
		for {
			select {
			case <-stop:
				return
			default:
				n, _, err := c.d.Sweep()
				if err != nil {
					t.Error(err)
				}
				total += n
			}
		}
	}()
	for range 10 {
		for _, i := range list {
			target := t.TempDir()
			if err := backend.Mount(t.Context(), i.mountable(), target); err != nil {
				t.Error(err)
				continue
			}
			expect(t, target, i.content)
			unmount(t, target)
		}
	}
	close(stop)
	t.Logf("%d files swept", <-ended)
}

// TestTooFull has limits that the disk does not keep from the beginning.
func TestTooFull(t *testing.T) {
	need(t)
	d, err := cachefiles.Open(cachefiles.Options{Dir: cacheDir(t), Limits: cachefiles.Limits{Run: 99, Cull: 98, Stop: 97}})
	if !errors.Is(err, unix.ENOBUFS) || !strings.Contains(err.Error(), "make room") || d != nil {
		t.Error(err)
	}
	open(t)
}

// small makes a file system of its own.
func small(t *testing.T, mebibytes int64) string {
	t.Helper()
	need(t)
	file, dir := filepath.Join(cacheDir(t), "disk"), filepath.Join(cacheDir(t), "mnt")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, mebibytes<<20), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mke2fs", "-F", "-b", "4096", "-I", "256", file}, {"mount", "-t", "ext4", "-o", "loop", file, dir}} {
		if out, err := exec.Command("busybox", args...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if err := fsbackend.Unmount(dir); err != nil {
			t.Error(err)
		}
	})
	cache := filepath.Join(dir, "cache dir")
	if err := os.Mkdir(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	return cache
}

// TestFull fills the disk of the cache while it is used: readers get EIO, and data when there is room.
func TestFull(t *testing.T) {
	for name, limits := range map[string]cachefiles.Limits{"stop": {Run: 30, Cull: 20, Stop: 10}, "full": {Run: 2, Cull: 1, Stop: 0}} {
		t.Run(name, func(t *testing.T) {
			dir := small(t, 64)
			c := open(t, func(o *cachefiles.Options) { o.Dir, o.Limits = dir, limits })
			i := c.instance(t, c.domain, 256)
			target := mount(t, i.mountable())
			if _, err := block(t, target, 1); err != nil {
				t.Fatal(err)
			}
			filler := filepath.Join(filepath.Dir(dir), "filler")
			fill(t, filler)
			start := time.Now()
			failed := 0
			var err error
			for n := range 40 {
				if _, e := block(t, target, 10+n); e != nil {
					failed, err = failed+1, e
				}
			}
			if !errors.Is(err, unix.EIO) {
				t.Errorf("read: %v", err)
			}
			s := c.d.Stats()
			t.Logf("%d reads failed, %v: %v; %d without room", failed, time.Since(start), err, s.NoRoom)
			if s.NoRoom == 0 || s.NoRoom != s.Failed || !strings.Contains(c.log.String(), "make room") {
				t.Errorf("%+v\n%s", s, c.log)
			}
			if _, err := block(t, target, 1); err != nil {
				t.Errorf("what is cached: %v", err)
			}
			if _, err = tryMount(t, c.instance(t, c.domain, 4).mountable()); err == nil || !strings.Contains(err.Error(), "less free space") {
				t.Errorf("mount: %v", err)
			}
			if wants, err := c.d.WantsCulling(); !wants || err != nil {
				t.Errorf("wants culling: %t, %v", wants, err)
			}
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			unix.Sync()
			start = time.Now()
			expect(t, target, i.content)
			t.Logf("read in %v", time.Since(start))
			j := c.instance(t, c.domain, 4)
			expect(t, mount(t, j.mountable()), j.content)
		})
	}
}

// TestGivenUp: after an I/O error of the disk the kernel gives the cache up without a message. It is noticed, readers are not left waiting, and there
// can be another cache.
func TestGivenUp(t *testing.T) {
	dir := small(t, 64)
	c := open(t, func(o *cachefiles.Options) { o.Dir = dir })
	i := c.instance(t, c.domain, 16)
	target := mount(t, i.mountable())
	if err := c.d.Check(); err != nil {
		t.Fatal(err)
	}
	disk, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	const ext4IocShutdown, withoutFlush = 0x8004587d, 2
	err = unix.IoctlSetPointerInt(int(disk.Fd()), ext4IocShutdown, withoutFlush)
	disk.Close()
	if err != nil {
		t.Fatal(err)
	}
	other := c.instance(t, c.domain, 16)
	if _, err := tryMount(t, other.mountable()); err == nil { // a new file cannot be made
		t.Error("mounted on a disk that is gone")
	}
	if err := c.d.Check(); !errors.Is(err, cachefiles.ErrDead) {
		t.Errorf("check: %v", err)
	}
	if _, err := block(t, target, 5); err == nil {
		t.Error("read from a disk that is gone")
	}
	c.close(t)
	again := open(t)
	j := again.instance(t, again.domain, 4)
	expect(t, mount(t, j.mountable()), j.content)
}

func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4096} {
		b := make([]byte, size)
		for {
			if _, err := f.Write(b); errors.Is(err, unix.ENOSPC) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := f.Sync(); err != nil && !errors.Is(err, unix.ENOSPC) {
		t.Error(err)
	}
}
