package keeper

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair returns the two ends of a connection.
func pair(t testing.TB) (a, b *conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	a, err = newConn(fds[0])
	must(t, err)
	b, err = newConn(fds[1])
	must(t, err)
	t.Cleanup(func() { a.close(); b.close() })
	return a, b
}

// later is a deadline that is not met when all is well.
func later() time.Time { return time.Now().Add(patient) }

// openDescriptors counts those of this process.
func openDescriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

func TestDescriptorsTravel(t *testing.T) {
	a, b := pair(t)
	h := standIn(t, "x")
	var files []int
	for _, f := range []*os.File{h.Group, h.Data, h.Journal} {
		fd, err := numberOf(f)
		must(t, err)
		files = append(files, fd)
	}
	must(t, a.send(message{kind: hold, name: "x", body: h.Note, files: files}, later()))
	m, err := b.receive(later())
	must(t, err)
	for _, fd := range m.files {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		must(t, err)
		if flags&unix.FD_CLOEXEC == 0 {
			t.Error("a received descriptor goes to children")
		}
	}
	got := Held{
		Name: m.name, Note: m.body,
		Group: os.NewFile(uintptr(m.files[0]), ""), Data: os.NewFile(uintptr(m.files[1]), ""), Journal: os.NewFile(uintptr(m.files[2]), ""),
	}
	defer got.Close()
	must(t, checkStandIn(got))
}

// What does not have the right number of descriptors, or is nonsense, leaves none open.
func TestReceiveClosesWhatItRefuses(t *testing.T) {
	a, b := pair(t)
	fd, err := numberOf(standIn(t, "x").Data)
	must(t, err)
	before := openDescriptors(t)
	for name, m := range map[string]message{
		"two for hold":   {kind: hold, name: "x", files: []int{fd, fd}},
		"one for end":    {kind: end, files: []int{fd}},
		"one for held":   {kind: held, name: "x", files: []int{fd}},
		"not a message":  {kind: 99, files: []int{fd, fd, fd}},
		"two for secret": {kind: secret, files: []int{fd, fd}},
	} {
		must(t, a.send(m, later()))
		if m, err := b.receive(later()); err == nil {
			t.Errorf("%s: received %+v", name, m)
		}
	}
	must(t, a.send(message{kind: hold, name: "x", files: make([]int, 8)}, later())) // 8 times standard input
	if m, err := b.receive(later()); !errors.Is(err, errCut) || m.name != "x" {
		t.Errorf("too many descriptors: got %+v, %v", m, err)
	}
	if after := openDescriptors(t); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

func TestReceiveEnds(t *testing.T) {
	a, b := pair(t)
	if _, err := b.receive(time.Now()); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
	must(t, a.send(message{kind: end}, later()))
	a.hangUp()
	if _, err := b.receive(later()); err != nil {
		t.Errorf("what was sent before the end is lost: %v", err)
	}
	if _, err := b.receive(later()); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	must(t, b.send(message{kind: end}, later()))
	if _, err := a.receive(later()); err != nil {
		t.Errorf("the side that hung up does not receive: %v", err)
	}
	got := make(chan error, 1)
	go func() {
		_, err := a.receive(time.Time{})
		got <- err
	}()
	time.Sleep(10 * time.Millisecond) // that it waits is likely then, and not important
	a.close()
	if err := <-got; err != os.ErrClosed {
		t.Errorf("after close: %v", err)
	}
	if err := a.send(message{kind: end}, later()); err != os.ErrClosed {
		t.Errorf("sent after close: %v", err)
	}
}

func TestSendIsBounded(t *testing.T) {
	a, _ := pair(t)
	m := message{kind: held, name: "x", body: make([]byte, MaxNoteBytes)}
	for range 10000 {
		if err := a.send(m, time.Now().Add(20*time.Millisecond)); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
			return
		}
	}
	t.Error("a side that does not receive does not stop the other")
}
