package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// leaveGrace is how long a daemon that was told that another one takes over may take to release the groups or to exit.
	leaveGrace = 3 * time.Second
	// killWait is how long a killed process may take to be gone. One that waits for a disk can take longer; that is tried again.
	killWait = 10 * time.Second
	// gonePoll is how often it is looked whether a process is gone.
	gonePoll = 5 * time.Millisecond
)

// process is another process, or this one, by a pidfd: it never means a later process with the same number.
type process struct {
	pid   int
	pidfd int
}

// peerOf returns the process that made the connection. It must be root's, or of the user of this process.
func (c *conn) peerOf() (process, error) {
	p := process{pidfd: -1}
	var cred *unix.Ucred
	var err error
	controlErr := c.raw.Control(func(fd uintptr) {
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil {
			return
		}
		if p.pidfd, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD); errors.Is(err, unix.ENOPROTOOPT) {
			p.pidfd, err = openPeer(int(fd), int(cred.Pid))
		}
	})
	if err := errors.Join(err, controlErr); err != nil {
		return process{}, fmt.Errorf("credentials of the other side: %w", err)
	}
	p.pid = int(cred.Pid)
	switch {
	case cred.Uid != 0 && int(cred.Uid) != os.Geteuid():
		err = fmt.Errorf("process %d is of user %d", cred.Pid, cred.Uid)
	case cred.Pid <= 0:
		err = errors.New("a process outside of this PID namespace")
	default:
		unix.CloseOnExec(p.pidfd)
		return p, nil
	}
	p.close()
	return process{}, err
}

// openPeer is for kernels before 6.5, which have no SO_PEERPIDFD. The number can mean another process only if the one that has connected is gone; then
// its end of the connection is closed, which no other process has.
func openPeer(fd, pid int) (pidfd int, err error) {
	if pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
		return -1, err
	}
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	if _, err = unix.Poll(fds, 0); err == nil && fds[0].Revents&(unix.POLLHUP|unix.POLLRDHUP|unix.POLLERR) != 0 {
		err = unix.ESRCH
	}
	if err != nil {
		unix.Close(pidfd)
		return -1, err
	}
	return pidfd, nil
}

func (p process) close() { closeAll([]int{p.pidfd}) }

// gone tells whether all threads of p have exited, so that its descriptors are closed.
func (p process) gone() bool {
	fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}

// is tells whether both are the same process.
func (p process) is(other process) bool {
	return p.pid == other.pid && !p.gone() // while p lives, nobody else has its number
}

// waitGone waits until p is gone, or left is closed.
func (p process) waitGone(ctx context.Context, atMost time.Duration, left <-chan struct{}) bool {
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	for {
		select {
		case <-left:
			return true
		default:
		}
		if p.gone() {
			return true
		}
		if sleep(ctx, gonePoll) != nil {
			return false
		}
	}
}

// kill kills p and waits until it is gone. A keeper that runs inside of the daemon does not kill itself.
func (p process) kill(ctx context.Context) error {
	if p.pid == os.Getpid() {
		return nil
	}
	if err := unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill the former daemon, process %d: %w", p.pid, err)
	}
	if !p.waitGone(ctx, killWait, nil) {
		return fmt.Errorf("the former daemon, process %d, was killed and does not end (it may wait for a disk)", p.pid)
	}
	return nil
}
