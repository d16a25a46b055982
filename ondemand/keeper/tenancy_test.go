package keeper

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// leaveHeld has something be held by a process that then releases the role.
func leaveHeld(t *testing.T, at string, names ...string) {
	t.Helper()
	c := dialOf(t, at)
	for _, name := range names {
		must(t, c.Hold(timeout(t), standIn(t, name)))
	}
	must(t, c.Release(timeout(t)))
}

func TestSecondDaemonTakesOver(t *testing.T) {
	for _, test := range []struct {
		manner string
		killed bool
	}{{"obey", false}, {"hang", true}} {
		t.Run(test.manner, func(t *testing.T) {
			at := address(t)
			s, _ := keep(t, Options{Address: at})
			if test.manner != "hang" {
				s.turn.Lock()
				s.grace = patient
				s.turn.Unlock()
			}
			leaveHeld(t, at, "a", "b")
			first := spawn(t, "daemon", at, test.manner)
			first.expect("dialed a,b")
			second := spawn(t, "daemon", at, "hang")
			second.expect("dialed a,b")
			first.expect("done true")
			first.wait()
			if first.wasKilled() != test.killed {
				t.Errorf("killed: %t", first.wasKilled())
			}
			if !second.lives() {
				t.Error("the second has gone, too")
			}
			if r := status(t, at); r.State != Served || r.DaemonPID != second.cmd.Process.Pid {
				t.Errorf("%+v", r)
			}
		})
	}
}

// A daemon that says that it has stopped reading need not exit.
func TestReleasedDaemonLivesOn(t *testing.T) {
	at := address(t)
	s, _ := keep(t, Options{Address: at})
	s.turn.Lock()
	s.grace = patient
	s.turn.Unlock()
	leaveHeld(t, at, "a")
	first := spawn(t, "daemon", at, "release")
	first.expect("dialed a")
	second := spawn(t, "daemon", at, "hang")
	first.expect("done true")
	first.expect("released")
	second.expect("dialed a")
	if !first.lives() {
		t.Error("it was killed")
	}
}

// A daemon that cannot even be told is killed.
func TestStoppedDaemonIsKilled(t *testing.T) {
	at := address(t)
	keep(t, Options{Address: at})
	leaveHeld(t, at, "a")
	first := spawn(t, "daemon", at, "obey")
	first.expect("dialed a")
	must(t, first.cmd.Process.Signal(syscall.SIGSTOP))
	spawn(t, "daemon", at, "hang").expect("dialed a")
	first.wait()
	if !first.wasKilled() {
		t.Error("it ended by itself")
	}
}

// When the daemon has died, the next one does not wait for anything.
func TestDeadDaemonIsReplaced(t *testing.T) {
	at := address(t)
	s, fake := keep(t, Options{Address: at})
	s.turn.Lock()
	s.grace = 10 * patient
	s.turn.Unlock()
	leaveHeld(t, at, "a")
	for range 5 {
		first := spawn(t, "daemon", at, "hang")
		first.expect("dialed a")
		first.kill()
	}
	spawn(t, "daemon", at, "hang").expect("dialed a")
	if fake.count() != 0 {
		t.Error("the keeper answered though it has patience")
	}
}

// A process that dials again, with or without having lost its first connection, is not killed.
func TestSameProcessDialsAgain(t *testing.T) {
	at := address(t)
	s, _ := keep(t, Options{Address: at})
	s.turn.Lock()
	s.grace = 10 * patient
	s.turn.Unlock()
	first := dialOf(t, at)
	must(t, first.Hold(timeout(t), standIn(t, "a")))
	second := dialOf(t, at, "a")
	<-first.Done()
	if first.Err() == nil || strings.Contains(first.Err().Error(), "taken over") {
		t.Errorf("got %v", first.Err())
	}
	if err := first.Hold(timeout(t), standIn(t, "b")); err == nil {
		t.Error("the first connection can still change what is held")
	}
	must(t, second.Hold(timeout(t), standIn(t, "b")))
	must(t, second.Close())
	dialOf(t, at, "a", "b")
}

// A daemon that comes back gets names, and no role that another one has.
func TestRedial(t *testing.T) {
	at := address(t)
	keep(t, Options{Address: at})
	c := dialOf(t, at)
	must(t, c.Hold(timeout(t), standIn(t, "a")))
	must(t, c.Hold(timeout(t), standIn(t, "b")))
	must(t, c.Close())
	before := openDescriptors(t)
	c, names, err := Redial(timeout(t), at)
	must(t, err)
	if len(names) != 2 || names[0] != "a" || names[1] != "b" {
		t.Errorf("held: %v", names)
	}
	must(t, c.Drop(timeout(t), "a"))
	must(t, c.Release(timeout(t)))
	if after := openDescriptors(t); after > before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}

	spawn(t, "daemon", at, "hang").expect("dialed b")
	if _, _, err := Redial(timeout(t), at); !errors.Is(err, ErrSuperseded) {
		t.Errorf("got %v", err)
	}
	if r := status(t, at); r.State != Served || r.DaemonPID == os.Getpid() {
		t.Errorf("%+v", r)
	}
	another := address(t)
	keep(t, Options{Address: another})
	c, names, err = Redial(timeout(t), another)
	must(t, err)
	defer c.Close()
	if len(names) != 0 {
		t.Errorf("a keeper that knows nothing has %v", names)
	}
}

func TestPatienceEnds(t *testing.T) {
	at := address(t)
	_, fake := keep(t, Options{Address: at, Patience: 20 * time.Millisecond})
	c := dialOf(t, at)
	for _, name := range []string{"a", "b", "c"} {
		must(t, c.Hold(timeout(t), standIn(t, name)))
	}
	for range 3 {
		must(t, c.Close())
		eventually(t, "the keeper answers", func() bool { return fake.count() == 3 })
		if r := status(t, at); r.State != Denying || r.Denied%3 != 0 || r.Denied < 6 || r.Away < 20*time.Millisecond {
			t.Errorf("%+v", r)
		}
		c = dialOf(t, at, "a", "b", "c")
		if n := fake.count(); n != 0 {
			t.Fatalf("the keeper still answers for %d when the daemon has everything", n)
		}
	}
	if r := status(t, at); r.State != Served || r.Denied != 27 {
		t.Errorf("%+v", r)
	}
}

// A daemon that lives without its connection may still answer, so it is killed before the keeper does.
func TestHungDaemonIsKilledBeforeDenying(t *testing.T) {
	at := address(t)
	_, fake := keep(t, Options{Address: at, Patience: 100 * time.Millisecond})
	leaveHeld(t, at, "a")
	hung := spawn(t, "leaver", at)
	hung.expect("left")
	eventually(t, "the keeper answers", func() bool { return fake.count() == 1 })
	hung.wait()
	if !hung.wasKilled() {
		t.Error("it ended by itself")
	}
}

func TestNothingHeldNothingDenied(t *testing.T) {
	at := address(t)
	s, _ := keep(t, Options{Address: at, Patience: time.Millisecond})
	c := dialOf(t, at)
	must(t, c.Hold(timeout(t), standIn(t, "a")))
	must(t, c.Drop(timeout(t), "a"))
	must(t, c.Close())
	eventually(t, "the daemon is away", func() bool { return status(t, at).State == Away })
	for range 20 {
		s.wake()
		time.Sleep(time.Millisecond)
	}
	if r := status(t, at); r.State != Away {
		t.Errorf("%+v", r)
	}
}

// What cannot be answered is tried again.
func TestDenyingIsTriedAgain(t *testing.T) {
	at := address(t)
	s, fake := keep(t, Options{Address: at, Patience: time.Millisecond})
	s.turn.Lock()
	fake.failed = 1
	s.turn.Unlock()
	c := dialOf(t, at)
	must(t, c.Hold(timeout(t), standIn(t, "a")))
	must(t, c.Close())
	eventually(t, "the keeper answers", func() bool { return fake.count() == 1 })
}

func TestProcessIsNeverALaterOne(t *testing.T) {
	a, b := pair(t)
	p, err := a.peerOf()
	must(t, err)
	defer p.close()
	q, err := b.peerOf()
	must(t, err)
	defer q.close()
	if p.pid != os.Getpid() || p.gone() || !p.is(q) {
		t.Errorf("%+v is not this process", p)
	}
	must(t, p.kill(t.Context())) // which does nothing
}
