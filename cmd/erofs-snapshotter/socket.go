package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// listen opens the unix socket at address for this user alone. A socket that a dead daemon left is replaced; one on which
// somebody answers is not. Closing the listener removes the socket.
//
// The process's umask is changed for a moment: call it before goroutines make files.
func listen(address string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(address), 0o700); err != nil {
		return nil, fmt.Errorf("socket %s: %w", address, err)
	}
	if err := removeStale(address); err != nil {
		return nil, err
	}
	// chmod after bind would leave a moment in which anybody can connect.
	umask := unix.Umask(0o177)
	listener, err := net.Listen("unix", address)
	unix.Umask(umask)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	return listener, nil
}

// removeStale removes the socket at address when nobody listens on it.
func removeStale(address string) error {
	fi, err := os.Lstat(address)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("socket %s: a file that is not a socket is in the way", address)
	}
	conn, err := net.DialTimeout("unix", address, time.Second)
	if err == nil {
		conn.Close()
		return fmt.Errorf("socket %s: another process listens on it\n  stop that process, or set another address in the configuration", address)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("socket %s: %w", address, err)
	}
	return os.Remove(address)
}
