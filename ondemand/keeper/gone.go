package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Gone returns nil if it is certain that no keeper is at address. Otherwise the error says why not: a keeper that is stopped, or too busy to
// answer, is there, and so is what it holds. It asks the keeper nothing: the lock of the socket goes with the last process that has it, and should
// its file have been removed, the socket tells whether somebody listens.
func Gone(address string) error {
	owner, err := lockOwner(address + ".lock")
	if err != nil {
		return fmt.Errorf("whether a keeper is at %s is not known: %w", address, err)
	}
	if owner != "" {
		return fmt.Errorf("a keeper, process %s, is at %s", owner, address)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond) // a full backlog is somebody's, too
	defer cancel()
	c, err := connect(ctx, address)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return nil
	case err == nil:
		c.close()
		return fmt.Errorf("a keeper listens at %s", address)
	}
	return fmt.Errorf("whether a keeper is at %s is not known: %w", address, err)
}

// lockOwner is the process that has a lock, as far as its file says; "" if none has it.
func lockOwner(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close() // and with it the lock, if it was free; takeLock waits for that
	fd, err := numberOf(f)
	if err == nil {
		err = unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB)
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		return signedBy(f), nil
	}
	return "", err
}

// signedBy is what the owner of a lock has written into its file; see listener.sign.
func signedBy(f *os.File) string {
	b, _ := io.ReadAll(io.LimitReader(f, 32)) // only for messages
	if pid := strings.TrimSpace(string(b)); pid != "" {
		return pid
	}
	return "unknown"
}
