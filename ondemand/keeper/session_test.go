package keeper

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A daemon that sends nonsense is disconnected, and nothing is lost.
func TestNonsenseEndsTheConnection(t *testing.T) {
	at := address(t)
	s, _ := keep(t, Options{Address: at})
	idle := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.open) == 0
	}
	before := openDescriptors(t)
	for _, packet := range [][]byte{{}, {99}, make([]byte, maxPacketBytes+1), message{kind: hold, name: "x"}.append(nil)} {
		c := holdAll(t, at, "a")
		must(t, sendRaw(c.conn, packet))
		if len(packet) > 0 { // a packet of nothing is the end of a connection, too
			<-c.Done()
		}
		c.Close()
		c = dialOf(t, at, "a")
		must(t, c.Drop(timeout(t), "a"))
		must(t, c.Release(timeout(t)))
		other, err := connect(timeout(t), at)
		must(t, err)
		must(t, sendRaw(other, packet))
		other.close()
		eventually(t, "the connections have ended", idle)
	}
	s.turn.Lock()
	must(t, s.retire(process{}, patient)) // as the next daemon would have it
	s.turn.Unlock()
	// Those that stand for a held group are open until the test ends.
	if after, leaked := openDescriptors(t), 4*3; after > before+leaked {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

func sendRaw(c *conn, packet []byte) error {
	fd, err := numberOf(c.file)
	if err != nil {
		return err
	}
	return unix.Sendmsg(fd, packet, nil, nil, unix.MSG_NOSIGNAL)
}

func TestTooManyConnections(t *testing.T) {
	at := address(t)
	s, _ := keep(t, Options{Address: at})
	c := holdAll(t, at, "a")
	var others []*conn
	for range maxSessions {
		other, err := connect(timeout(t), at)
		must(t, err)
		defer other.close()
		others = append(others, other)
	}
	for _, other := range others[len(others)-1:] {
		if m, err := other.receive(later()); err == nil {
			t.Errorf("got %+v", m)
		}
	}
	must(t, c.Hold(timeout(t), standIn(t, "b")))
	for _, other := range others {
		other.close()
	}
	eventually(t, "the connections have ended", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.open) == 1
	})
	status(t, at)
}

// A daemon that has no room for descriptors gets an error, not a part.
func TestDialWithoutDescriptors(t *testing.T) {
	at := address(t)
	keep := spawn(t, "keeper", at, "1h")
	keep.expect("ready")
	leaveHeld(t, at, "a", "b", "c")
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	defer func() { must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) }()
	few := limit
	few.Cur = uint64(highest(t) + 6)
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &few))
	before := openDescriptors(t)
	c, held, _, err := Dial(timeout(t), at)
	if err == nil {
		t.Errorf("%d are held", len(held))
		c.Close()
	}
	if after := openDescriptors(t); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

// highest is the highest number of a descriptor that a new one gets without a gap below.
func highest(t *testing.T) int {
	t.Helper()
	f, err := os.Open("/")
	must(t, err)
	defer f.Close()
	n, err := numberOf(f)
	must(t, err)
	return n
}

// A keeper has no room for descriptors: the daemon is told, and may do something about it.
func TestHoldWithoutDescriptors(t *testing.T) {
	at := address(t)
	k := spawn(t, "keeper", at, "1h")
	k.expect("ready")
	c := holdAll(t, at, "a")
	var limit unix.Rlimit
	must(t, unix.Prlimit(k.cmd.Process.Pid, unix.RLIMIT_NOFILE, nil, &limit))
	few := limit
	few.Cur = 3
	must(t, unix.Prlimit(k.cmd.Process.Pid, unix.RLIMIT_NOFILE, &few, nil))
	if err := c.Hold(timeout(t), standIn(t, "b")); err == nil {
		t.Error("held without descriptors")
	}
	must(t, unix.Prlimit(k.cmd.Process.Pid, unix.RLIMIT_NOFILE, &limit, nil))
	must(t, c.Hold(timeout(t), standIn(t, "b")))
	c.Close()
	dialOf(t, at, "a", "b")
}

// Whatever a daemon sends, the keeper lives and holds what it held.
func FuzzSession(f *testing.F) {
	f.Add(helloOf(daemon).append(nil), message{kind: hold, id: 1, name: "x"}.append(nil))
	f.Add(helloOf(successor).append(nil), message{kind: taken}.append(nil))
	f.Add(helloOf(observer).append(nil), []byte{})
	f.Add(helloOf(daemon).append(nil), message{kind: drop, id: 1, name: "y"}.append(nil))
	f.Add(helloOf(daemon).append(nil), message{kind: released}.append(nil))
	at := address(f)
	keep(f, Options{Address: at, Patience: time.Hour})
	first, err := connectDaemon(f, at)
	must(f, err)
	must(f, first.Hold(timeout(f), standIn(f, "held")))
	must(f, first.Close())
	f.Fuzz(func(t *testing.T, hello, request []byte) {
		if m, err := parse(request); err == nil && (m.kind == taken || m.kind == drop && m.name == "held") {
			return // it does what it says
		}
		c, err := connect(timeout(t), at)
		must(t, err)
		_ = sendRaw(c, hello) // it may be too long, or refused already
		_ = sendRaw(c, request)
		c.hangUp()
		for err == nil {
			var m message
			m, err = c.receive(later())
			closeAll(m.files)
		}
		c.close()
		if r := status(t, at); len(r.Names) != 1 {
			t.Errorf("%+v", r)
		}
	})
}

func connectDaemon(t testing.TB, at string) (*Client, error) {
	c, held, _, err := Dial(timeout(t), at)
	for _, h := range held {
		h.Close()
	}
	return c, err
}
