package keeper

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pollMost is how many groups one wait returns at most.
const pollMost = 64

// poll tells in which groups events wait. It is an epoll instance that lies in the runtime's poller, so that no thread waits in it. One
// goroutine at a time may wait.
type poll struct {
	fd      int // of file
	file    *os.File
	raw     syscall.RawConn
	events  [pollMost]unix.EpollEvent
	numbers []int32
}

func newPoll() (*poll, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // or os.NewFile does not think that it can be waited for
		unix.Close(fd)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	p := &poll{fd: fd, file: os.NewFile(uintptr(fd), "epoll")}
	if p.raw, err = p.file.SyscallConn(); err == nil {
		err = p.file.SetReadDeadline(time.Time{})
	}
	if err != nil {
		p.close()
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return p, nil
}

// arm has wait return a group once, when something waits in it, or does already.
func (p *poll) arm(g *denied) error {
	op := unix.EPOLL_CTL_MOD
	if !g.polled {
		op = unix.EPOLL_CTL_ADD
	}
	if err := unix.EpollCtl(p.fd, op, g.fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: g.number}); err != nil {
		return os.NewSyscallError("epoll_ctl", err)
	}
	g.polled = true
	return nil
}

// wait returns the numbers of groups in which something waits, until the next call.
func (p *poll) wait() ([]int32, error) {
	var n int
	var err error
	readErr := p.raw.Read(func(uintptr) bool {
		for {
			if n, err = unix.EpollWait(p.fd, p.events[:], 0); !errors.Is(err, unix.EINTR) {
				return n != 0 || err != nil
			}
		}
	})
	if err == nil {
		err = readErr
	}
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	p.numbers = p.numbers[:0]
	for _, e := range p.events[:n] {
		p.numbers = append(p.numbers, e.Fd)
	}
	return p.numbers, nil
}

// interrupt ends all waiting.
func (p *poll) interrupt() { p.file.SetReadDeadline(time.Unix(1, 0)) }

func (p *poll) close() { p.file.Close() }
