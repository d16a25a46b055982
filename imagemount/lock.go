package imagemount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockEvery is how often a lock that another command has is tried.
const lockEvery = 100 * time.Millisecond

// lockRoot makes the root directory and takes it for this process. The lock is the kernel's, on the directory itself, so it ends with
// the process however that ends, and leaves no file.
func lockRoot(ctx context.Context, root string, wait time.Duration, waiting func()) (*os.File, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	f, err := os.Open(root)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	if err := flock(ctx, f, wait, waiting); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock root %s: %w", root, err)
	}
	return f, nil
}

// flock is not left to the kernel to wait for, because that could not be ended.
func flock(ctx context.Context, f *os.File, wait time.Duration, waiting func()) error {
	deadline := time.Now().Add(wait)
	for told := false; ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		if !time.Now().Before(deadline) {
			return fmt.Errorf("another mount or unmount command has it, after %v still\n"+
				"  --wait gives it more time; `lslocks` shows which process it is", wait)
		}
		if !told && waiting != nil {
			waiting()
		}
		told = true
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lockEvery):
		}
	}
}
