package keeper

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestHeldIsHandedOut(t *testing.T) {
	at := address(t)
	keep(t, Options{Address: at})
	c := dialOf(t, at)
	for _, name := range []string{"a", "b", "c"} {
		must(t, c.Hold(timeout(t), standIn(t, name)))
	}
	sealed, err := Seal([]byte("user:password"))
	must(t, err)
	defer sealed.Close()
	must(t, c.Secret(timeout(t), sealed))
	must(t, c.Drop(timeout(t), "b"))
	must(t, c.Drop(timeout(t), "never-held"))
	must(t, c.Close())

	c, held, got, err := Dial(timeout(t), at)
	must(t, err)
	defer c.Close()
	for _, h := range held {
		must(t, checkStandIn(h))
		h.Close()
	}
	if len(held) != 2 {
		t.Errorf("%d are held, want 2", len(held))
	}
	b, err := Unseal(got)
	must(t, err)
	got.Close()
	if string(b) != "user:password" {
		t.Errorf("got secret %q", b)
	}
	must(t, c.Secret(timeout(t), nil))
	if status(t, at).Secret {
		t.Error("a secret that was taken away is held")
	}
}

// After an ack the daemon may close its own descriptors; after a Drop nobody has the keeper's.
func TestDropCloses(t *testing.T) {
	at := address(t)
	keep(t, Options{Address: at})
	c := dialOf(t, at)
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	h := standIn(t, "a")
	h.Group = w
	must(t, c.Hold(timeout(t), h))
	must(t, w.Close())
	must(t, r.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the keeper does not hold it: %v", err)
	}
	must(t, c.Drop(timeout(t), "a"))
	must(t, r.SetReadDeadline(later()))
	if _, err := r.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the keeper still holds it: %v", err)
	}
}

func TestHoldAgain(t *testing.T) {
	at := address(t)
	keep(t, Options{Address: at})
	c := dialOf(t, at)
	h := standIn(t, "a")
	must(t, c.Hold(timeout(t), h))
	before := openDescriptors(t)
	h.Note = []byte("another note")
	for range 3 {
		must(t, c.Hold(timeout(t), h))
	}
	if after := openDescriptors(t); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
	if err := c.Hold(timeout(t), standIn(t, "a")); err == nil {
		t.Error("another group has taken the place of one that is held")
	}
	must(t, c.Close())
	c, held, _, err := Dial(timeout(t), at)
	must(t, err)
	defer c.Close()
	if len(held) != 1 || string(held[0].Note) != "another note" {
		t.Errorf("held: %+v", held)
	}
	b := make([]byte, 10)
	_, err = held[0].Group.ReadAt(b, 0)
	must(t, err)
	if string(b) != "group of a" {
		t.Errorf("got %q", b)
	}
	held[0].Close()
}

func TestHoldRefuses(t *testing.T) {
	at := address(t)
	keep(t, Options{Address: at})
	c := dialOf(t, at)
	for what, change := range map[string]func(*Held){
		"no name":         func(h *Held) { h.Name = "" },
		"a long name":     func(h *Held) { h.Name = strings.Repeat("x", MaxNameBytes+1) },
		"a name of two":   func(h *Held) { h.Name = "a b" },
		"a long note":     func(h *Held) { h.Note = make([]byte, MaxNoteBytes+1) },
		"a missing group": func(h *Held) { h.Group = nil },
	} {
		h := standIn(t, "a")
		change(&h)
		if err := c.Hold(timeout(t), h); err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
	if err := c.Secret(timeout(t), standIn(t, "a").Data); err == nil {
		t.Error("a secret that is not sealed is accepted")
	}
	must(t, c.Hold(timeout(t), standIn(t, "a"))) // all that has not harmed the connection
}

func TestManyCallsAtOnce(t *testing.T) {
	at := address(t)
	keep(t, Options{Address: at})
	c := dialOf(t, at)
	var calls sync.WaitGroup
	for i := range 50 {
		h := standIn(t, fmt.Sprint(i))
		calls.Go(func() {
			if err := c.Hold(timeout(t), h); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	if n := len(status(t, at).Names); n != 50 {
		t.Errorf("%d are held", n)
	}
}

// An observer sees what is held and takes nothing.
func TestStatusTakesNoRole(t *testing.T) {
	at := address(t)
	keep(t, Options{Address: at, Version: "v1"})
	if r := status(t, at); r.State != Away || r.PID != os.Getpid() || r.Version != "v1" || r.Patience != DefaultPatience {
		t.Errorf("at first: %+v", r)
	}
	c := dialOf(t, at)
	must(t, c.Hold(timeout(t), standIn(t, "b")))
	must(t, c.Hold(timeout(t), standIn(t, "a")))
	r := status(t, at)
	if r.State != Served || r.DaemonPID != os.Getpid() || r.Away != 0 || fmt.Sprint(r.Names) != "[a b]" {
		t.Errorf("served: %+v", r)
	}
	must(t, c.Hold(timeout(t), standIn(t, "c")))
	must(t, c.Close())
	eventually(t, "the keeper knows that the daemon is away", func() bool { return status(t, at).State == Away })
}

func TestNobodyListens(t *testing.T) {
	at := address(t)
	if _, _, _, err := Dial(timeout(t), at); !errors.Is(err, unix.ENOENT) {
		t.Errorf("got %v", err)
	}
	if _, err := Status(timeout(t), at); !errors.Is(err, unix.ENOENT) {
		t.Errorf("got %v", err)
	}
}

// silent listens and never says anything.
func silent(t *testing.T) (at string) {
	t.Helper()
	l, err := listen(address(t))
	must(t, err)
	t.Cleanup(l.close)
	return l.address
}

func TestDialEndsWithContext(t *testing.T) {
	at := silent(t)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, _, _, err := Dial(ctx, at); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestAnotherVersionIsRefused(t *testing.T) {
	at := address(t)
	keep(t, Options{Address: at})
	c, err := connect(timeout(t), at)
	must(t, err)
	defer c.close()
	m := helloOf(daemon)
	binary.LittleEndian.PutUint32(m.body[len(magic):], protocolVersion+1)
	must(t, c.send(m, later()))
	if m, err = c.receive(later()); err != nil || m.kind != ack || !bytes.Contains(m.body, []byte("version")) {
		t.Errorf("got %+v, %v", m, err)
	}
}
