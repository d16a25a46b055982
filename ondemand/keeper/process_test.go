package keeper

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOpenPeer: as kernels need it that do not tell the pidfd of who has connected.
func TestOpenPeer(t *testing.T) {
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET} {
		fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		pidfd, err := openPeer(fds[0], os.Getpid())
		must(t, err)
		if (process{pid: os.Getpid(), pidfd: pidfd}).gone() {
			t.Error("this process is gone")
		}
		must(t, unix.Close(pidfd))
		must(t, unix.Close(fds[1]))
		if _, err := openPeer(fds[0], os.Getpid()); !errors.Is(err, unix.ESRCH) {
			t.Errorf("whoever had connected is gone: got %v", err)
		}
		must(t, unix.Close(fds[0]))
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer closeAll(fds[:])
	if _, err := openPeer(fds[0], 1<<30); err == nil {
		t.Error("no such process, and no error")
	}
}
