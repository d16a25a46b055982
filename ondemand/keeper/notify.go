package keeper

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// notify tells systemd something about this service, as sd_notify(3) does. Without systemd it does nothing.
func notify(state string) error {
	address := os.Getenv("NOTIFY_SOCKET")
	if address == "" {
		return nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if after, abstract := strings.CutPrefix(address, "@"); abstract {
		address = "\x00" + after
	}
	return os.NewSyscallError("sendto", unix.Sendto(fd, []byte(state), unix.MSG_NOSIGNAL, &unix.SockaddrUnix{Name: address}))
}
