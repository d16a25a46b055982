package keeper

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// listener is the socket, and a lock: who has that may remove and make the socket. The lock is of the open file, and goes to a successor
// with it, or ends with the last process that has it.
type listener struct {
	address string
	socket  *os.File
	raw     syscall.RawConn
	lock    *os.File
	closed  atomic.Bool
}

// listen makes the socket at address, and its directory, for this user alone. What a dead keeper left is replaced.
func listen(address string) (_ *listener, err error) {
	dir := filepath.Dir(address)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := checkDirectory(dir); err != nil {
		return nil, err
	}
	lock, err := takeLock(address + ".lock")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := removeSocket(address); err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// chmod after bind would leave a moment in which others can connect.
	umask := unix.Umask(0o177)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: address})
	unix.Umask(umask)
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return newListener(address, fd, lock)
}

// newListener takes over a socket that does not block, and its lock.
func newListener(address string, fd int, lock *os.File) (*listener, error) {
	l := &listener{address: address, socket: os.NewFile(uintptr(fd), address), lock: lock}
	var err error
	if l.raw, err = l.socket.SyscallConn(); err != nil {
		return nil, errors.Join(err, l.socket.Close())
	}
	return l, l.sign()
}

// sign writes into the lock's file who has it, for messages.
func (l *listener) sign() error {
	pid := fmt.Sprintf("%d\n", os.Getpid())
	_, err := l.lock.WriteAt([]byte(pid), 0)
	return errors.Join(err, l.lock.Truncate(int64(len(pid))))
}

// accept returns the next connection, or os.ErrClosed.
func (l *listener) accept() (*conn, error) {
	fd := -1
	var accepted error
	err := l.raw.Read(func(socket uintptr) (done bool) {
		fd, _, accepted = unix.Accept4(int(socket), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		return !errors.Is(accepted, unix.EAGAIN)
	})
	switch {
	case l.closed.Load():
		if err == nil && accepted == nil {
			unix.Close(fd)
		}
		return nil, os.ErrClosed
	case err != nil:
		return nil, err
	case accepted != nil:
		return nil, os.NewSyscallError("accept", accepted)
	}
	return newConn(fd)
}

// remove removes the socket: nobody has taken over.
func (l *listener) remove() { _ = os.Remove(l.address) } // the next keeper does it otherwise

// close gives up the socket and the lock. A successor that has them is not disturbed.
func (l *listener) close() {
	l.closed.Store(true)
	_ = l.socket.Close()
	_ = l.lock.Close()
}

// checkDirectory: who can write to the directory can put another socket in place of ours, and would be told learned credentials.
func checkDirectory(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("directory %s has owner %d and mode %#o: others could replace the socket\n"+
			"  chmod it to 0700, or choose another address", dir, st.Uid, st.Mode&0o7777)
	}
	return nil
}

func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	fd, err := numberOf(f)
	if err == nil {
		err = lockNow(fd)
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("another keeper, process %s, is there\n  --replace takes over from it", signedBy(f))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// lookTime is longer than Gone has the lock.
const lookTime = 100 * time.Millisecond

// lockNow takes a lock that nobody has for longer than a look.
func lockNow(fd int) error {
	for end := time.Now().Add(lookTime); ; time.Sleep(time.Millisecond) {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) {
			return err
		}
	}
}

// removeSocket removes what a dead keeper left: the lock tells that it is dead.
func removeSocket(address string) error {
	fi, err := os.Lstat(address)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && fi.Mode().Type() != fs.ModeSocket {
		err = errors.New("a file that is not a socket is in the way")
	}
	if err != nil {
		return err
	}
	return os.Remove(address)
}
