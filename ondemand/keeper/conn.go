package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// ioTimeout bounds one message that the other side should take, or should have sent by now. Both sides only have to be scheduled.
	ioTimeout = 10 * time.Second
	// backlog is how many connections may wait to be accepted; there is one daemon, and now and then an observer.
	backlog = 64
)

// errCut says that descriptors did not arrive.
var errCut = errors.New("descriptors were cut off: too many open files? RLIMIT_NOFILE has to be 3 for each incomplete layer, and some more")

// conn is one end of a connection. One goroutine at a time may receive; others may send. Sockets are used without package net, which would be
// the larger part of the keeper's memory.
type conn struct {
	file   *os.File
	raw    syscall.RawConn
	closed atomic.Bool
	in     [maxPacketBytes + 1]byte // the receiver's
}

// newConn takes over a connected socket that does not block.
func newConn(fd int) (*conn, error) {
	file := os.NewFile(uintptr(fd), "keeper's connection")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &conn{file: file, raw: raw}, nil
}

// connect connects to the socket at address. A full backlog is waited for.
func connect(ctx context.Context, address string) (*conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	for {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: address})
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	return newConn(fd)
}

// sleep waits, or returns the cause why ctx has ended.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// send returns when the kernel has taken the message, with duplicates of its descriptors, for the other side.
func (c *conn) send(m message, deadline time.Time) error {
	if err := c.file.SetWriteDeadline(deadline); err != nil {
		return c.orClosed(err)
	}
	packet := m.append(make([]byte, 0, headerBytes+len(m.name)+len(m.body)))
	var rights []byte
	if len(m.files) > 0 {
		rights = unix.UnixRights(m.files...)
	}
	var sent error
	err := c.raw.Write(func(fd uintptr) (done bool) {
		for {
			_, sent = unix.SendmsgN(int(fd), packet, rights, nil, unix.MSG_NOSIGNAL)
			if !errors.Is(sent, unix.EINTR) {
				return !errors.Is(sent, unix.EAGAIN)
			}
		}
	})
	if err == nil && sent != nil {
		err = os.NewSyscallError("sendmsg", sent)
	}
	return c.orClosed(err)
}

// orClosed returns os.ErrClosed instead of an error that came because c was closed, for which there are several.
func (c *conn) orClosed(err error) error {
	if err != nil && c.closed.Load() {
		return os.ErrClosed
	}
	return err
}

// sendNow is send with a deadline that is near, and not behind ctx's.
func (c *conn) sendNow(ctx context.Context, m message) error { return c.send(m, soon(ctx)) }

// soon is when a side that is alive has done what is expected of it.
func soon(ctx context.Context) time.Time {
	at := time.Now().Add(ioTimeout)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(at) {
		return deadline
	}
	return at
}

// receive returns the next message, whose descriptors are the caller's from then on. A deadline of zero is none. The error is io.EOF when
// the other side has hung up. With errCut the message is there, without descriptors.
func (c *conn) receive(deadline time.Time) (message, error) {
	if err := c.file.SetReadDeadline(deadline); err != nil {
		return message{}, c.orClosed(err)
	}
	return c.receiveNext()
}

func (c *conn) receiveNext() (message, error) {
	rights := make([]byte, unix.CmsgSpace(maxFiles*4))
	var n, nr, flags int
	var received error
	err := c.raw.Read(func(fd uintptr) (done bool) {
		for {
			n, nr, flags, _, received = unix.Recvmsg(int(fd), c.in[:], rights, unix.MSG_CMSG_CLOEXEC)
			// ECONNRESET says, once, that the other side hung up without having read everything. What it sent follows, and the end.
			if !errors.Is(received, unix.EINTR) && !errors.Is(received, unix.ECONNRESET) {
				return !errors.Is(received, unix.EAGAIN)
			}
		}
	})
	switch {
	case c.closed.Load():
		return message{}, os.ErrClosed
	case err != nil:
		return message{}, err
	case received != nil:
		return message{}, os.NewSyscallError("recvmsg", received)
	}
	files, err := descriptors(rights[:nr])
	if err == nil && n == 0 {
		err = io.EOF
	}
	var m message
	if err == nil {
		m, err = parse(c.in[:n])
	}
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		closeAll(files)
		return m, errCut
	}
	m.files = files
	if err == nil {
		err = m.checkFiles()
	}
	if err != nil {
		closeAll(files)
		return message{}, err
	}
	return m, nil
}

// expectNow receives a message of one of the given kinds until ctx ends, which has to interrupt c. An ack is the other side's refusal.
func (c *conn) expectNow(ctx context.Context, kinds ...kind) (message, error) {
	deadline, _ := ctx.Deadline() // or never
	if err := c.file.SetReadDeadline(deadline); err != nil {
		return message{}, c.orClosed(err)
	}
	if ctx.Err() != nil { // looked at after the deadline was set: an interrupt before that was undone
		return message{}, context.Cause(ctx)
	}
	m, err := c.receiveNext()
	if err != nil {
		return message{}, err
	}
	for _, k := range kinds {
		if m.kind == k {
			return m, nil
		}
	}
	closeAll(m.files)
	if m.kind == ack {
		return message{}, &refusal{string(m.body)}
	}
	return message{}, fmt.Errorf("a message of kind %d out of turn", m.kind)
}

// refusal is the text of an ack.
type refusal struct{ text string }

func (r *refusal) Error() string { return "the keeper refuses: " + r.text }

// descriptors returns those that came with a packet, all of them even when there is an error.
func descriptors(control []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	var all []int
	for i := range messages {
		fds, e := unix.ParseUnixRights(&messages[i])
		all = append(all, fds...)
		err = errors.Join(err, e)
	}
	return all, err
}

// isAbandoned tells whether the other side has hung up.
func (c *conn) isAbandoned() (gone bool) {
	_ = c.raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(fds, 0)
		gone = err == nil && n == 1 && fds[0].Revents&(unix.POLLHUP|unix.POLLRDHUP) != 0
	})
	return gone
}

// interrupt has what is being sent and received fail.
func (c *conn) interrupt() { _ = c.file.SetDeadline(time.Unix(1, 0)) } // a connection that is closed fails by itself

// hangUp makes the other side read the end, while what it sends is still received.
func (c *conn) hangUp() {
	_ = c.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) }) // fails only when there is nobody to tell
}

// stopReceiving has receive return io.EOF, while answers to what was received can still be sent.
func (c *conn) stopReceiving() {
	_ = c.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RD) }) // fails only when it has ended
}

// close ends the connection, and wakes who sends or receives.
func (c *conn) close() {
	c.closed.Store(true)
	_ = c.file.Close() // nothing is lost with it: what matters is acknowledged
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // of a duplicate; there is nothing to do about an error
	}
}

// numberOf returns f's descriptor, valid while f is open. File.Fd is not used, because it may make the open file block, which is shared
// with other processes.
func numberOf(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	n := -1
	err = raw.Control(func(fd uintptr) { n = int(fd) })
	return n, err
}

// duplicate returns another descriptor of the open file, as a file.
func duplicate(fd int, name string) (*os.File, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	return os.NewFile(uintptr(n), name), nil
}
