package fscache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/backendtest"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/cachefiles"
)

const (
	// childVariable is the store of a process that serves the device it gets as descriptor 3, until it is killed.
	childVariable = "EROFS_FSCACHE_CHILD"
	// roundsVariable is how often the daemon is killed.
	roundsVariable = "EROFS_FSCACHE_KILLS"
)

func child() int {
	s := newStore(os.Getenv(childVariable))
	s.fail = func(context.Context, string, int64, int64) error {
		time.Sleep(rand.N(20 * time.Millisecond))
		return nil
	}
	d, err := cachefiles.Adopt(os.NewFile(3, "device"), cachefiles.Options{Lookup: s.lookup, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err == nil {
		err = d.Serve(context.Background())
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// daemon is a process that serves.
type daemon struct {
	cmd *exec.Cmd
	out bytes.Buffer
}

func startDaemon(t *testing.T, device *os.File, dir string) *daemon {
	t.Helper()
	d := &daemon{cmd: exec.Command("/proc/self/exe")}
	d.cmd.Env = append(os.Environ(), childVariable+"="+dir)
	d.cmd.ExtraFiles = []*os.File{device}
	d.cmd.Stderr = &d.out
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return d
}

// kill returns when the process has ended, with all its descriptors.
func (d *daemon) kill(t *testing.T) {
	t.Helper()
	if err := d.cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	d.cmd.Wait()
}

// keep opens a cache and returns a copy of the device, which is not served.
func keep(t *testing.T) (device *os.File, dir, domain string) {
	t.Helper()
	need(t)
	dir = cacheDir(t)
	d := mustOpen(t, cachefiles.Options{Dir: dir, Limits: cachefiles.Limits{Run: 3, Cull: 2, Stop: 1}})
	fd, err := unix.FcntlInt(d.File().Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	device = os.NewFile(uintptr(fd), "device")
	t.Cleanup(func() { device.Close() })
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return device, dir, fmt.Sprintf("k%d-%d", os.Getpid(), domains.Add(1))
}

// TestKilled kills the daemon again and again while files are read, mounted and unmounted. A successor that adopts the device goes on: no read is
// wrong, fails or hangs.
func TestKilled(t *testing.T) {
	device, _, domain := keep(t)
	rounds := 20
	if n, err := strconv.Atoi(os.Getenv(roundsVariable)); err == nil {
		rounds = n
	}
	s := newStore(t.TempDir())
	now := startDaemon(t, device, s.dir)
	defer func() { now.kill(t) }()

	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	var reads, mounted atomic.Int64
	var last [4]atomic.Int64 // when a reader has read something
	for r := range last {
		last[r].Store(time.Now().UnixNano())
		readers.Go(func() {
			for ctx.Err() == nil && !t.Failed() {
				i := s.instance(t, domain, 64)
				target := t.TempDir()
				if err := backend.Mount(context.Background(), i.mountable(), target); err != nil {
					t.Errorf("mount: %v", err)
					return
				}
				mounted.Add(1)
				for n := range 48 {
					if err := readSome(target, i.content, n); err != nil {
						t.Errorf("read: %v", err)
					}
					reads.Add(1)
					last[r].Store(time.Now().UnixNano())
				}
				if err := backend.Unmount(context.Background(), target); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var longest time.Duration
	for range rounds {
		time.Sleep(rand.N(600 * time.Millisecond))
		before := reads.Load()
		now.kill(t)
		if s := now.out.String(); s != "" && testing.Verbose() {
			t.Logf("daemon: %s", s)
		}
		killed := time.Now()
		time.Sleep(rand.N(200 * time.Millisecond))
		now = startDaemon(t, device, s.dir)
		for reads.Load() < before+int64(len(last)) {
			if time.Since(killed) > patience {
				t.Errorf("no reads for %v", time.Since(killed))
				break
			}
			time.Sleep(time.Millisecond)
		}
		longest = max(longest, time.Since(killed))
		if t.Failed() {
			break
		}
	}
	cancel()
	ended := make(chan struct{})
	go func() { readers.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(2 * patience):
		t.Errorf("readers hang; daemon: %s", &now.out)
		device.Close()
		now.kill(t)
		<-ended
	}
	t.Logf("%d kills, %d mounts, %d reads, at most %v until all read again", rounds, mounted.Load(), reads.Load(), longest)
}

// readSome reads a part of the file that may not be there yet.
func readSome(target string, want []byte, n int) error {
	f, err := os.Open(filepath.Join(target, backendtest.FileName))
	if err != nil {
		return err
	}
	defer f.Close()
	off := rand.N(len(want))
	if n == 0 {
		off = len(want) - 1000
	}
	b := make([]byte, min(len(want)-off, rand.N(20000)+1))
	if _, err := io.ReadFull(io.NewSectionReader(f, int64(off), int64(len(b))), b); err != nil {
		return fmt.Errorf("%d bytes at %d: %w", len(b), off, err)
	}
	if !bytes.Equal(b, want[off:off+len(b)]) {
		return fmt.Errorf("%d bytes at %d are wrong", len(b), off)
	}
	return nil
}

// TestWaits has a read wait for the next daemon, and cached data be read meanwhile.
func TestWaits(t *testing.T) {
	device, _, domain := keep(t)
	s := newStore(t.TempDir())
	one := startDaemon(t, device, s.dir)
	i := s.instance(t, domain, 64)
	target := mount(t, i.mountable())
	if _, err := block(t, target, 3); err != nil {
		t.Error(err)
	}
	one.kill(t)
	if _, err := block(t, target, 3); err != nil {
		t.Errorf("what is cached: %v", err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := block(t, target, 9)
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("not waited for: %v", err)
	case <-time.After(time.Second):
	}
	two := startDaemon(t, device, s.dir)
	defer two.kill(t)
	if err := <-done; err != nil {
		t.Errorf("read: %v", err)
	}
	expect(t, target, i.content)
}

// TestUnknownAfterTakeover has a successor that does not know what is mounted. A reader waits until somebody does.
func TestUnknownAfterTakeover(t *testing.T) {
	device, _, domain := keep(t)
	s := newStore(t.TempDir())
	one := startDaemon(t, device, s.dir)
	i := s.instance(t, domain, 64)
	target := mount(t, i.mountable())
	if _, err := block(t, target, 3); err != nil {
		t.Error(err)
	}
	one.kill(t)
	away := filepath.Join(s.dir, "away")
	if err := os.Rename(filepath.Join(s.dir, i.id), away); err != nil {
		t.Fatal(err)
	}
	two := startDaemon(t, device, s.dir)
	done := make(chan error, 1)
	go func() {
		_, err := block(t, target, 9)
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("the reader does not wait: %v", err)
		done <- nil
	case <-time.After(3 * time.Second):
	}
	if err := os.Rename(away, filepath.Join(s.dir, i.id)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("read: %v", err)
	}
	two.kill(t)
	three := startDaemon(t, device, s.dir)
	defer three.kill(t)
	expect(t, target, i.content)
}

// TestFirstOpenFails refuses the first OPEN of the data, which a mount does not wait for. They are lost until no mount uses them.
func TestFirstOpenFails(t *testing.T) {
	c := open(t)
	i := c.instance(t, c.domain, 64)
	away := i.image.Data + ".away"
	img := i.mountable()
	img.Data = away
	if err := os.Rename(i.image.Data, away); err != nil {
		t.Fatal(err)
	}
	target := mount(t, img)
	if _, err := block(t, target, 9); !isDead(err) {
		t.Errorf("read: %v", err)
	}
	if err := os.Rename(away, i.image.Data); err != nil {
		t.Fatal(err)
	}
	if _, err := block(t, target, 9); !isDead(err) {
		t.Errorf("read: %v", err)
	}
	second, err := tryMount(t, i.mountable())
	if err != nil {
		t.Fatal(err)
	}
	if _, err = block(t, second, 9); !isDead(err) {
		t.Errorf("another mount beside it: %v", err)
	}
	unmount(t, target)
	unmount(t, second)
	expect(t, mount(t, i.mountable()), i.content)
}

// TestBusy says who has the device.
func TestBusy(t *testing.T) {
	c := open(t)
	_, err := cachefiles.Open(cachefiles.Options{Dir: c.dir})
	name, nameErr := os.ReadFile("/proc/self/comm")
	if nameErr != nil {
		t.Fatal(nameErr)
	}
	want := fmt.Sprintf("%s (process %d)", strings.TrimSpace(string(name)), os.Getpid())
	if !errors.Is(err, cachefiles.ErrBusy) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v", err)
	}
	t.Log(err)
}
