package cachefiles

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// deny does what Deny does, for the scripted kernel.
func (k *kernel) deny(ctx context.Context, denied *atomic.Int64, log *lines) error {
	return k.denyUntil(ctx, denied, log, quietTime)
}

func (k *kernel) denyUntil(ctx context.Context, denied *atomic.Int64, log *lines, quiet time.Duration) error {
	k.t.Helper()
	d, err := takeOver(newOn(k, Options{Lookup: deniedByKey, Log: slog.New(slog.NewTextHandler(log, nil))}))
	if d == nil {
		return err
	}
	defer d.Close()
	err = d.deny(ctx, denied, err == nil, quiet)
	k.check()
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.byFD) > 0 {
		k.t.Errorf("%d descriptors of objects are left", len(k.byFD))
	}
	return err
}

// polled says whether poll would tell that something waits.
func (k *kernel) polled() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range k.requests {
		if r.fresh {
			return true
		}
	}
	return false
}

// stranded is how many requests nobody would learn of: they have been read, and have no answer.
func (k *kernel) stranded() (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range k.requests {
		if !r.fresh {
			n++
		}
	}
	return n
}

func keyOf(size int64, mount uint64) string {
	return Key{Instance: strings.Repeat("a1", idDigits/2), Size: size, Mount: mount}.String()
}

// What a daemon left, and what comes, is answered with errors, cached data can be read, and mounts and unmounts go on.
func TestDeny(t *testing.T) {
	before := openFiles(t)
	key := keyOf(1<<20, 0)
	s, _ := start(t, newBound(t), 1<<20)
	c := newContent(1 << 20)
	s.objects.add(key, c)
	f := s.mount(t, key)
	s.expect(t, f, c, 0, 8192)
	c.before = hang
	r := s.ask(&request{opcode: opRead, file: f, off: 8192, n: 4096})
	eventually(t, "in flight", func() bool { return len(s.d.Stats().InFlight) == 1 })
	s.stop()

	var denied atomic.Int64
	var log lines
	ended := make(chan error, 1)
	go func() { ended <- s.deny(t.Context(), &denied, &log) }()
	if err := s.await(r); err != nil {
		t.Error(err)
	}
	if _, err := s.readAt(f, 8192, 4096); err != unix.EIO {
		t.Errorf("got %v, want EIO", err)
	}
	g, err := s.open("erofs,test", keyOf(10000, 7))
	if err != nil || g.size != 10000 {
		t.Errorf("open: %v, size %d", err, g.size)
	}
	if _, err := s.readAt(g, 8192, 4096); err != unix.EIO {
		t.Errorf("got %v, want EIO", err)
	}
	if err := s.withdraw(g); err != nil {
		t.Error(err)
	}
	if _, err := s.open("erofs,test", "one"); err != unix.ENOENT {
		t.Errorf("open of what has no size: %v", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := denied.Load(); n != 5 { // each read is tried twice
		t.Errorf("%d denied", n)
	}
	if !log.contains("no key") || log.contains("a read fails") {
		t.Errorf("log: %s", log.b.String())
	}
	s.expect(t, f, c, 0, 8192)

	c.before = nil
	if err := s.successor(t); err != nil {
		t.Fatal(err)
	}
	s.expect(t, f, c, 0, 1<<20)
	s.stop()
	if n := openFiles(t); n != before {
		t.Errorf("%d open files, before %d", n, before)
	}
}

// Whoever polls learns of everything that has no answer after a denial, at whatever moment it came; and each denial ends.
func TestDenyStrandsNothing(t *testing.T) {
	k := newBound(t)
	f := k.file("erofs,test", keyOf(1<<20, 1))
	const quiet = 500 * time.Microsecond
	const reads = 800
	over := make(chan struct{})
	go func() {
		defer close(over)
		for range reads { // most come when the keeper is about to think that nothing comes any more
			time.Sleep(quiet + time.Duration(rand.IntN(int(quiet/4))))
			if _, err := k.readAt(f, 0, 8192); err != unix.EIO {
				t.Errorf("got %v, want EIO", err)
			}
		}
	}()
	var denied atomic.Int64
	denials := 0
	for going := true; going; {
		if k.polled() {
			denials++
			if err := k.denyUntil(t.Context(), &denied, &lines{}, quiet); err != nil {
				t.Fatal(err)
			}
			if n := k.stranded(); n > 0 {
				t.Fatalf("%d requests are left without an answer", n)
			}
		}
		select {
		case <-over:
			going = false
		default:
			time.Sleep(quiet / 10)
		}
	}
	t.Logf("%d denials", denials)
	if denied.Load() < 2*reads {
		t.Errorf("%d denied", denied.Load())
	}
}

// A daemon that comes gets what has no answer yet.
func TestDenyEndsWithContext(t *testing.T) {
	s, c := start(t, newBound(t), 1<<20)
	key := keyOf(1<<20, 1)
	s.objects.add(key, c)
	s.stop()
	f := s.file("erofs,test", key)
	ctx, cancel := context.WithCancel(t.Context())
	var reading sync.WaitGroup
	for range 4 {
		reading.Go(func() {
			for ctx.Err() == nil {
				if _, err := s.readAt(f, 0, 4096); err != nil && err != unix.EIO {
					t.Error(err)
				}
			}
		})
	}
	var denied atomic.Int64
	ended := make(chan error, 1)
	go func() { ended <- s.deny(ctx, &denied, &lines{}) }()
	eventually(t, "some are denied", func() bool { return denied.Load() > 3 })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := s.successor(t); err != nil {
		t.Error(err)
	}
	reading.Wait()
	s.expect(t, f, c, 0, 1<<20)
}

// Kernels without restore fail by themselves what was open.
func TestDenyWithoutRestore(t *testing.T) {
	k := newBound(t)
	k.old = true
	var denied atomic.Int64
	f := k.file("erofs,test", keyOf(1<<20, 0))
	r := k.ask(&request{opcode: opOpen, file: f})
	if err := k.deny(t.Context(), &denied, &lines{}); err != nil {
		t.Error(err)
	}
	if err := k.await(r); err != nil {
		t.Error(err)
	}
}

// The real port, as far as it goes without the kernel's device.
func TestDenyDevice(t *testing.T) {
	before := openFiles(t)
	fd, other := pair(t)
	var denied atomic.Int64
	ended := make(chan error, 1)
	go func() {
		ended <- Deny(t.Context(), os.NewFile(uintptr(fd), "device"), &denied, slog.New(slog.DiscardHandler))
	}()
	if got := command(t, other); got != "restore" {
		t.Errorf("command %q", got)
	}
	object, err := unix.MemfdCreate("object", 0)
	if err != nil {
		t.Fatal(err)
	}
	say(t, other, message{id: 5, opcode: opOpen, object: 1, volume: "erofs,test", cookie: keyOf(4242, 0), fd: object})
	if got := command(t, other); got != "copen 5,4242" {
		t.Errorf("command %q", got)
	}
	say(t, other, message{id: 6, opcode: opRead, object: 1, off: 0, n: 4096})
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if denied.Load() != 1 {
		t.Errorf("%d denied", denied.Load())
	}
	if n := openFiles(t); n != before+1 { // the other side
		t.Errorf("%d open files, before %d", n, before)
	}
	file, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := Deny(t.Context(), file, &denied, nil); err == nil {
		t.Error("a directory is taken for a device")
	}
}
