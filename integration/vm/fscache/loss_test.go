package fscache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/backendtest"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/fscache"
)

// isDead says whether a reader was told that a cache file can no longer be read. EIO is what fails in the cache, ENOBUFS what never reaches it.
func isDead(err error) bool { return errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOBUFS) }

// TestLost gives the cache up while an image is mounted. Its reads fail and are never wrong; a cache in a new directory and a new domain works
// beside it, and the old mount stays dead until it is removed.
func TestLost(t *testing.T) {
	c := open(t)
	i := c.instance(t, c.domain, 64)
	old := mount(t, i.mountable())
	if _, err := block(t, old, 3); err != nil {
		t.Error(err)
	}
	dead := func(when string) {
		t.Helper()
		for _, n := range []int{3, 9} {
			start := time.Now()
			b, err := block(t, old, n)
			if err == nil && string(b) == string(i.content[n*4096:][:4096]) {
				t.Logf("%s: block %d can still be read", when, n)
				if n == 9 {
					t.Error("it was never asked for")
				}
			} else if !isDead(err) {
				t.Errorf("%s: block %d: %v", when, n, err)
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("%s: block %d: after %v", when, n, d)
			}
		}
	}
	stale := func(domain string, want int) {
		t.Helper()
		list, err := fscache.Stale(filepath.Dir(filepath.Dir(old)), domain)
		if err != nil || len(list) != want {
			t.Errorf("stale: %q, %v, want %d", list, err, want)
		}
	}
	stale(c.domain, 0)
	c.end()
	start := time.Now()
	c.close(t)
	t.Logf("closed in %v", time.Since(start))
	dead("lost")
	stale(c.domain, 0)

	start = time.Now()
	next := open(t)
	t.Logf("opened again in %v", time.Since(start))
	if err := os.RemoveAll(c.dir); err != nil {
		t.Error(err)
	}
	dead("beside another cache")
	next.store.dir = c.store.dir
	j := i
	j.domain = next.domain
	target := mount(t, j.mountable())
	expect(t, target, i.content)
	stale(next.domain, 1)
	dead("beside another mount")
	if n := next.d.Stats().Opens; n != 2 {
		t.Errorf("%d OPENs", n)
	}

	start = time.Now()
	unmount(t, old)
	t.Logf("unmounted in %v", time.Since(start))
	stale(next.domain, 0)
	if _, err := os.Stat(filepath.Join(old, backendtest.FileName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
	j = i
	j.domain = next.domain
	expect(t, mount(t, j.mountable()), i.content)
}

// TestLostWhileReading gives the cache up while reads wait, with a file open after that.
func TestLostWhileReading(t *testing.T) {
	c := open(t)
	began := make(chan struct{}, 100)
	c.fail = hang(began)
	i := c.instance(t, c.domain, 64)
	target := mount(t, i.mountable())
	done := make(chan error, 1)
	go func() {
		_, err := block(t, target, 9)
		done <- err
	}()
	<-began
	start := time.Now()
	c.close(t)
	if err := <-done; !isDead(err) {
		t.Errorf("read: %v", err)
	}
	t.Logf("EIO after %v", time.Since(start))
	f, err := os.Open(filepath.Join(target, backendtest.FileName))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	start = time.Now()
	unmount(t, target) // lazily
	t.Logf("unmounted in %v", time.Since(start))
	if _, err := f.ReadAt(make([]byte, 4096), 0); !isDead(err) {
		t.Errorf("read: %v", err)
	}
	next := open(t)
	j := next.instance(t, next.domain, 16)
	expect(t, mount(t, j.mountable()), j.content)
	if _, err := f.ReadAt(make([]byte, 4096), 4096); !isDead(err) {
		t.Errorf("read: %v", err)
	}
}

// TestLostWhileMounting gives the cache up while a mount waits for it: the mount fails.
func TestLostWhileMounting(t *testing.T) {
	c := open(t)
	c.end()
	img, target := c.instance(t, c.domain, 16).mountable(), t.TempDir()
	mounted := make(chan error, 1)
	go func() { mounted <- backend.Mount(context.Background(), img, target) }()
	select {
	case err := <-mounted:
		t.Errorf("not waited for: %v", err)
	case <-time.After(time.Second):
	}
	start := time.Now()
	c.close(t)
	select {
	case err := <-mounted:
		if !isDead(err) {
			t.Error(err)
		}
		t.Logf("after %v: %v", time.Since(start), err)
	case <-time.After(patience):
		t.Fatal("the mount hangs")
	}
	next := open(t)
	j := next.instance(t, next.domain, 16)
	expect(t, mount(t, j.mountable()), j.content)
}

// TestServedAgain ends Serve and begins again, with reads waiting meanwhile.
func TestServedAgain(t *testing.T) {
	c := open(t)
	i := c.instance(t, c.domain, 64)
	target := mount(t, i.mountable())
	for n := range 5 {
		c.end()
		done := make(chan error, 1)
		go func() {
			_, err := block(t, target, n)
			done <- err
		}()
		time.Sleep(50 * time.Millisecond)
		c.end = serve(t, c.d)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	expect(t, target, i.content)
}
