package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// lockRoot makes the root directory and takes it for this process. Two daemons on one root would delete each other's layers.
//
// The lock is the kernel's, on an open file, so it ends with the process however that ends; the file itself stays.
func lockRoot(root string) (*os.File, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	// It holds the files of all images, also those that only some users of the host may see.
	if err := os.Chmod(root, 0o700); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	path := filepath.Join(root, "daemon.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock root: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		return nil, fmt.Errorf("root %s is in use by the daemon with pid %s\n  stop that one, or give this one a root of its own", root, holder(f))
	}
	pid := fmt.Sprintf("%d\n", os.Getpid())
	_, err = f.WriteAt([]byte(pid), 0)
	if err = errors.Join(err, f.Truncate(int64(len(pid)))); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

func holder(f *os.File) string {
	b, err := io.ReadAll(io.LimitReader(f, 32))
	if pid := strings.TrimSpace(string(b)); err == nil && pid != "" {
		return pid
	}
	return "unknown"
}
