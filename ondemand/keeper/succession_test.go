package keeper

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// holdAll has a keeper hold stand-ins by a connection that stays.
func holdAll(t *testing.T, at string, names ...string) *Client {
	t.Helper()
	c := dialOf(t, at)
	for _, name := range names {
		must(t, c.Hold(timeout(t), standIn(t, name)))
	}
	return c
}

// The daemon loses its connection, dials again, and finds everything.
func TestReplace(t *testing.T) {
	at := address(t)
	first := spawn(t, "keeper", at, "1h")
	first.expect("ready")
	c := holdAll(t, at, "a", "b")
	sealed, err := Seal([]byte("user:password"))
	must(t, err)
	defer sealed.Close()
	must(t, c.Secret(timeout(t), sealed))
	for range 3 {
		second := spawn(t, "keeper", at, "1h", "replace")
		second.expect("ready")
		<-c.Done()
		first.wait()
		if first.err != nil {
			t.Fatalf("the predecessor: %v", first.err)
		}
		if r := status(t, at); r.PID != second.cmd.Process.Pid || !r.Secret || fmt.Sprint(r.Names) != "[a b]" || r.DaemonPID != os.Getpid() {
			t.Errorf("%+v", r)
		}
		c.Close()
		c = dialOf(t, at, "a", "b")
		first = second
	}
}

// Dials while keepers come and go find one.
func TestDialWhileReplacing(t *testing.T) {
	at := address(t)
	spawn(t, "keeper", at, "1h").expect("ready")
	holdAll(t, at, "a").Close()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			c, held, _, err := Dial(timeout(t), at)
			if err != nil {
				t.Error(err)
				return
			}
			if len(held) != 1 {
				t.Errorf("%d are held", len(held))
			}
			for _, h := range held {
				h.Close()
			}
			c.Close()
		}
	}()
	for range 5 {
		spawn(t, "keeper", at, "1h", "replace").expect("ready")
	}
	close(stop)
	<-stopped
}

func TestReplaceNobody(t *testing.T) {
	at := address(t)
	first := spawn(t, "keeper", at, "1h", "replace")
	first.expect("ready")
	first.kill() // and what it leaves is not in the way
	spawn(t, "keeper", at, "1h", "replace").expect("ready")
	dialOf(t, at)
}

func TestTwoKeepers(t *testing.T) {
	at := address(t)
	spawn(t, "keeper", at, "1h").expect("ready")
	second := spawn(t, "keeper", at, "1h")
	second.wait()
	if second.err == nil {
		t.Error("two keepers listen")
	}
	dialOf(t, at)
}

// A successor knows which process may still answer, and kills it before it answers itself.
func TestSuccessorKnowsTheFormerDaemon(t *testing.T) {
	at := address(t)
	spawn(t, "keeper", at, "1h").expect("ready")
	leaveHeld(t, at, "a")
	hung := spawn(t, "leaver", at)
	hung.expect("left")
	_, fake := keep(t, Options{Address: at, Patience: 50 * time.Millisecond, Replace: true})
	eventually(t, "the keeper answers", func() bool { return fake.count() == 1 })
	hung.wait()
	if !hung.wasKilled() {
		t.Error("it ended by itself")
	}
}

// One that has released may live on.
func TestSuccessorSparesReleased(t *testing.T) {
	at := address(t)
	spawn(t, "keeper", at, "1h").expect("ready")
	leaveHeld(t, at, "a")
	_, fake := keep(t, Options{Address: at, Patience: 20 * time.Millisecond, Replace: true})
	eventually(t, "the keeper answers", func() bool { return fake.count() == 1 })
}

// Who answers when it is replaced stops first, and the successor goes on at once.
func TestReplaceWhileDenying(t *testing.T) {
	at := address(t)
	old, oldFake := keep(t, Options{Address: at, Patience: 50 * time.Millisecond})
	leaveHeld(t, at, "a", "b")
	eventually(t, "the first keeper answers", func() bool { return oldFake.count() == 2 })
	_, fake := keep(t, Options{Address: at, Patience: 50 * time.Millisecond, Replace: true})
	if oldFake.count() != 0 {
		t.Error("the first keeper still answers")
	}
	eventually(t, "the first keeper knows that it was replaced", old.isReplaced) // the second has only sent it when it is ready
	eventually(t, "the second keeper answers", func() bool { return fake.count() == 2 })
	dialOf(t, at, "a", "b")
}

// A successor that dies, or never says that it has everything, changes nothing but that the daemon has to dial again.
func TestSuccessorDies(t *testing.T) {
	at := address(t)
	keep(t, Options{Address: at})
	c := holdAll(t, at, "a")
	half := spawn(t, "halfway", at)
	half.expect("has 1")
	half.kill()
	<-c.Done()
	c.Close()
	dialOf(t, at, "a")
	if r := status(t, at); r.PID != os.Getpid() {
		t.Errorf("%+v", r)
	}
}

// A keeper that was stopped cannot be replaced, and is what it was when it goes on.
func TestPredecessorHangs(t *testing.T) {
	at := address(t)
	first := spawn(t, "keeper", at, "1h")
	first.expect("ready")
	c := holdAll(t, at, "a")
	must(t, first.cmd.Process.Signal(syscall.SIGSTOP))
	second := spawn(t, "keeper", at, "1h", "replace")
	time.Sleep(50 * time.Millisecond) // for it to begin; whether it has does not matter
	second.kill()
	must(t, first.cmd.Process.Signal(syscall.SIGCONT))
	// The dead successor may have said hello: then the connection has ended.
	if err := c.Hold(timeout(t), standIn(t, "b")); err != nil {
		<-c.Done()
		c.Close()
		dialOf(t, at, "a")
		return
	}
	c.Close()
	dialOf(t, at, "a", "b")
}

// The predecessor dies when the successor has everything and has not been told that it is the keeper.
func TestPredecessorDiesLast(t *testing.T) {
	at := address(t)
	first := spawn(t, "keeper", at, "1h")
	first.expect("ready")
	leaveHeld(t, at, "a")
	c, in, err := dial(timeout(t), at, successor)
	must(t, err)
	defer c.close()
	s := &server{o: Options{Address: at}.withDefaults(), log: slog.New(slog.NewTextHandler(t.Output(), nil)), secret: -1, device: noDevice}
	must(t, s.inherit(in))
	must(t, first.cmd.Process.Signal(syscall.SIGSTOP))
	confirmed := make(chan error, 1)
	go func() { confirmed <- s.confirm(timeout(t), c, in.report) }()
	first.kill()
	if err := <-confirmed; err != nil {
		t.Errorf("the successor gives up what nobody else has: %v", err)
	}
	if len(s.held) != 1 {
		t.Errorf("%d are held", len(s.held))
	}
	s.listener.close()
	s.letGo()
}

// systemd is told which process is the service now.
func TestSystemdIsTold(t *testing.T) {
	name := filepath.Join(filepath.Dir(filepath.Dir(address(t))), "n.sock")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	must(t, err)
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", l.LocalAddr().String())
	read := func() string {
		b := make([]byte, 100)
		must(t, l.SetReadDeadline(later()))
		n, err := l.Read(b)
		must(t, err)
		return string(b[:n])
	}
	must(t, ReportReady(0, nil))
	if got := read(); got != "READY=1" {
		t.Errorf("got %q", got)
	}
	at := address(t)
	keep(t, Options{Address: at})
	second := spawn(t, "keeper", at, "1h", "replace")
	second.expect("ready")
	if got, want := read(), fmt.Sprintf("MAINPID=%d", second.cmd.Process.Pid); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
