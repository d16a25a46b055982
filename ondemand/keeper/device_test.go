package keeper

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/cachefiles"
)

// deviceStandIn is a device, and what stands for the kernel.
func deviceStandIn(t testing.TB) (h HeldDevice, kernel *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	h = HeldDevice{Note: []byte("note of the device"), File: os.NewFile(uintptr(fds[0]), "device")}
	kernel = os.NewFile(uintptr(fds[1]), "kernel")
	must(t, kernel.SetReadDeadline(later()))
	t.Cleanup(func() { h.File.Close(); kernel.Close() })
	return h, kernel
}

// checkDevice gets the device from the keeper, which has to be want.
func checkDevice(t testing.TB, c *Client, want HeldDevice) {
	t.Helper()
	got, err := c.Device(timeout(t))
	must(t, err)
	if got == nil {
		t.Fatal("no device is held")
	}
	defer got.File.Close()
	a, err := numberOf(got.File)
	must(t, err)
	b, err := numberOf(want.File)
	must(t, err)
	if !(deviceEntry{fd: a}).is(deviceEntry{fd: b}) || string(got.Note) != string(want.Note) {
		t.Errorf("another device is held, with note %q", got.Note)
	}
	if flags, err := unix.FcntlInt(uintptr(a), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Error("a received device goes to children")
	}
}

func TestDeviceIsHandedOut(t *testing.T) {
	at := address(t)
	keep(t, Options{Address: at})
	c := dialOf(t, at)
	if r := status(t, at); !r.Devices || r.Device != "" {
		t.Errorf("at first: %+v", r)
	}
	if h, err := c.Device(timeout(t)); h != nil || err != nil {
		t.Errorf("got %v, %v", h, err)
	}
	must(t, c.DropDevice(timeout(t))) // nothing is held
	h, kernel := deviceStandIn(t)
	must(t, c.HoldDevice(timeout(t), h))
	must(t, c.Hold(timeout(t), standIn(t, "a")))
	if r := status(t, at); r.Device != Served || fmt.Sprint(r.Names) != "[a]" {
		t.Errorf("%+v", r)
	}
	before := openDescriptors(t)
	h.Note = []byte("another note")
	for range 3 {
		must(t, c.HoldDevice(timeout(t), h))
	}
	another, _ := deviceStandIn(t)
	if err := c.HoldDevice(timeout(t), another); err == nil {
		t.Error("another device has taken the place of one that is held")
	}
	if err := c.HoldDevice(timeout(t), HeldDevice{Note: make([]byte, MaxNoteBytes+1), File: h.File}); err == nil {
		t.Error("a long note is accepted")
	}
	if after := openDescriptors(t); after > before+2 { // of another; one that had told its status may be gone since
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
	must(t, c.Close())
	c = dialOf(t, at, "a") // the device is not among what is handed out
	checkDevice(t, c, h)
	must(t, h.File.Close())
	must(t, kernel.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
	if _, err := kernel.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the keeper does not hold it: %v", err)
	}
	must(t, c.DropDevice(timeout(t)))
	must(t, kernel.SetReadDeadline(later()))
	if _, err := kernel.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the keeper still holds it: %v", err)
	}
	if r := status(t, at); r.Device != "" {
		t.Errorf("%+v", r)
	}
}

// A keeper of a former version is never sent what it does not understand.
func TestDeviceWithFormerKeeper(t *testing.T) {
	at := address(t)
	keep(t, Options{Address: at})
	c := dialOf(t, at)
	c.devices = false // as its report says, which lacks that
	h, _ := deviceStandIn(t)
	if err := c.HoldDevice(timeout(t), h); !errors.Is(err, ErrNoDevices) {
		t.Errorf("got %v", err)
	}
	if h, err := c.Device(timeout(t)); h != nil || err != nil {
		t.Errorf("got %v, %v", h, err)
	}
	must(t, c.DropDevice(timeout(t)))
	if r := status(t, at); r.Device != "" {
		t.Errorf("%+v", r)
	}
}

// When no daemon has the device, the keeper answers for it, and has stopped before one gets it.
func TestDeviceIsDenied(t *testing.T) {
	at := address(t)
	_, fake := keep(t, Options{Address: at, Patience: 20 * time.Millisecond})
	c := dialOf(t, at)
	h, _ := deviceStandIn(t)
	must(t, c.HoldDevice(timeout(t), h)) // and nothing else
	for range 3 {
		must(t, c.Close())
		eventually(t, "the keeper answers", func() bool { return fake.count() == 1 })
		if r := status(t, at); r.State != Denying && r.State != Away || r.Device != Denying || r.Denied < 2 {
			t.Errorf("%+v", r)
		}
		c = dialOf(t, at)
		if fake.count() != 0 {
			t.Error("the keeper still answers when a daemon has dialed")
		}
		checkDevice(t, c, h)
		if fake.count() != 0 {
			t.Error("the keeper still answers when a daemon has the device")
		}
		if r := status(t, at); r.Device != Served {
			t.Errorf("%+v", r)
		}
	}
	time.Sleep(60 * time.Millisecond)
	if fake.count() != 0 {
		t.Error("the keeper answers though a daemon has the device")
	}
}

// A daemon that does not ask for the device does not know it. The keeper answers for it meanwhile, and groups are the daemon's.
func TestDeviceOfUnawareDaemon(t *testing.T) {
	at := address(t)
	_, fake := keep(t, Options{Address: at, Patience: 50 * time.Millisecond})
	c := dialOf(t, at)
	h, _ := deviceStandIn(t)
	must(t, c.HoldDevice(timeout(t), h))
	must(t, c.Hold(timeout(t), standIn(t, "a")))
	must(t, c.Release(timeout(t)))
	unaware := spawn(t, "daemon", at, "obey")
	unaware.expect("dialed a")
	eventually(t, "the keeper answers for the device", func() bool { return fake.count() == 1 })
	r := status(t, at)
	if r.State != Served || r.Device != Denying || r.DaemonPID != unaware.cmd.Process.Pid || !unaware.lives() {
		t.Errorf("%+v", r)
	}
	unaware.kill()
	eventually(t, "the keeper answers for both", func() bool { return fake.count() == 2 })
	c = dialOf(t, at, "a")
	eventually(t, "the keeper answers for the device again", func() bool { return fake.count() == 1 })
	checkDevice(t, c, h)
	if fake.count() != 0 || status(t, at).Device != Served {
		t.Error("the keeper still answers")
	}
}

// A daemon that returns after it has lost its connection has the device; one that dials again, too.
func TestDeviceOfReturningDaemon(t *testing.T) {
	at := address(t)
	_, fake := keep(t, Options{Address: at, Patience: 300 * time.Millisecond})
	c := dialOf(t, at)
	h, _ := deviceStandIn(t)
	must(t, c.HoldDevice(timeout(t), h))
	for _, dial := range []func() *Client{
		func() *Client {
			c, _, err := Redial(timeout(t), at)
			must(t, err)
			return c
		},
		func() *Client { return dialOf(t, at) },
	} {
		must(t, c.Close())
		c = dial()
		if r := status(t, at); r.Device != Served {
			t.Errorf("%+v", r)
		}
		time.Sleep(400 * time.Millisecond)
		if fake.count() != 0 {
			t.Error("the keeper answers")
		}
		must(t, c.HoldDevice(timeout(t), h))
	}
	must(t, c.Close())
}

// A successor gets the device, unless it is of a version that does not ask for it: that one does not take over.
func TestDeviceGoesToSuccessor(t *testing.T) {
	at := address(t)
	first := spawn(t, "keeper", at, "1h")
	first.expect("ready")
	c := dialOf(t, at)
	h, _ := deviceStandIn(t)
	must(t, c.HoldDevice(timeout(t), h))
	must(t, c.Hold(timeout(t), standIn(t, "a")))
	for range 2 {
		unaware := spawn(t, "unaware", at)
		unaware.expect("has 1")
		unaware.expect("refused")
		<-c.Done()
		c.Close()
		c = dialOf(t, at, "a")
		checkDevice(t, c, h)

		second := spawn(t, "keeper", at, "1h", "replace")
		second.expect("ready")
		first.wait()
		if r := status(t, at); r.PID != second.cmd.Process.Pid || r.Device != Away || fmt.Sprint(r.Names) != "[a]" {
			t.Errorf("%+v", r)
		}
		c.Close()
		c = dialOf(t, at, "a")
		checkDevice(t, c, h)
		first = second
	}
	must(t, c.DropDevice(timeout(t)))
	unaware := spawn(t, "unaware", at)
	unaware.expect("has 1")
	unaware.expect("it is the keeper")
	unaware.kill()
}

// unawareChild is a successor of a version that knows nothing of devices.
func unawareChild(ctx context.Context, address string) error {
	c, in, err := dial(ctx, address, successor)
	if err != nil {
		return err
	}
	fmt.Println("has", len(in.held))
	if err := c.sendNow(ctx, message{kind: taken}); err != nil {
		return err
	}
	var no *refusal
	switch err := c.wait(ctx, yours); {
	case err == nil:
		fmt.Println("it is the keeper")
	case errors.As(err, &no) && strings.Contains(no.text, "/dev/cachefiles"):
		fmt.Println("refused")
	default:
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// A signal does not end a keeper that holds nothing but a device.
func TestSignalWithDevice(t *testing.T) {
	at := address(t)
	k := spawn(t, "keeper", at, "1h")
	k.expect("ready")
	c := dialOf(t, at)
	h, _ := deviceStandIn(t)
	must(t, c.HoldDevice(timeout(t), h))
	must(t, k.cmd.Process.Signal(syscall.SIGTERM))
	eventually(t, "the keeper has been told", func() bool { return status(t, at).Ending })
	time.Sleep(2 * endPoll)
	if !k.lives() {
		t.Fatal("it has ended while it held the device")
	}
	must(t, c.HoldDevice(timeout(t), h))
	if err := c.DropDevice(timeout(t)); err != nil {
		t.Error(err)
	}
	k.wait()
	if k.err != nil {
		t.Error(k.err)
	}
}

// openOf is a message of the kernel: see package cachefiles.
func openOf(id uint32, key string, fd int) []byte {
	const volume = "erofs,test\x00"
	ne := binary.NativeEndian
	b := make([]byte, 32, 512)
	ne.PutUint32(b, id)
	ne.PutUint32(b[8:], uint32(32+len(volume)+len(key)))
	ne.PutUint32(b[12:], id)
	ne.PutUint32(b[16:], uint32(len(volume)))
	ne.PutUint32(b[20:], uint32(len(key)))
	ne.PutUint32(b[24:], uint32(fd))
	return append(append(b, volume...), key...)
}

// What waits is answered whenever it comes, objects are closed when nothing does, and the device is not looked at when a daemon has it.
func TestDeviceIsServedByPoll(t *testing.T) {
	at := address(t)
	s, _ := keep(t, Options{Address: at, Patience: 50 * time.Millisecond})
	s.turn.Lock()
	s.adoptDevice = s.denyDevice
	s.turn.Unlock()
	c := dialOf(t, at)
	h, kernel := deviceStandIn(t)
	must(t, c.HoldDevice(timeout(t), h))
	must(t, c.Close())
	expect := func(want string) {
		t.Helper()
		b := make([]byte, 4096)
		n, err := kernel.Read(b)
		must(t, err)
		if got := string(b[:n]); got != want {
			t.Errorf("the kernel is told %q, want %q", got, want)
		}
	}
	expect("restore") // what a daemon left
	key := cachefiles.Key{Instance: strings.Repeat("ab", 32), Size: 31}.String()
	for id := range uint32(3) {
		object, err := unix.MemfdCreate("object", 0)
		must(t, err)
		_, err = kernel.Write(openOf(id, key, object))
		must(t, err)
		if id > 0 { // it was quiet before
			expect("restore")
		}
		expect(fmt.Sprintf("copen %d,31", id))
		eventually(t, "the object is closed", func() bool {
			_, err := unix.FcntlInt(uintptr(object), unix.F_GETFD, 0)
			return err == unix.EBADF
		})
		time.Sleep(50 * time.Millisecond) // it takes no time until it is polled, and if it is not yet, all is well, too
	}
	c = dialOf(t, at)
	checkDevice(t, c, h)
	_, err := kernel.Write(openOf(9, key, 9))
	must(t, err)
	must(t, kernel.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
	if n, err := kernel.Read(make([]byte, 4096)); err == nil {
		t.Errorf("the keeper says %d bytes though a daemon has the device", n)
	}
	must(t, c.DropDevice(timeout(t)))
}

// The device and the groups may be due at different times.
func TestDeviceIsDueBeforeGroups(t *testing.T) {
	at := address(t)
	_, fake := keep(t, Options{Address: at, Patience: 300 * time.Millisecond})
	c := dialOf(t, at)
	h, _ := deviceStandIn(t)
	must(t, c.HoldDevice(timeout(t), h))
	must(t, c.Hold(timeout(t), standIn(t, "a")))
	must(t, c.Release(timeout(t)))
	unaware := spawn(t, "daemon", at, "obey")
	unaware.expect("dialed a")
	time.Sleep(100 * time.Millisecond)
	unaware.kill()
	eventually(t, "the keeper answers for both", func() bool { return fake.count() == 2 })
}
