package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// An attendant is a process that answers for the layers of mounts that are loaded on demand, when the command that has made them has ended. It
// ends by itself when their data are all here, or nobody has them mounted any more. It, or a command, owns the layers of a root: whoever has
// locked the file "attendant" in the root. A command ends the attendant first, which loses nothing, since the root's keeper has everything; and
// starts another one at its end, if there is need of one.

const (
	attendantFile = "attendant"
	// attendantStop is how long an attendant may take to end when it is asked to, before it is killed.
	attendantStop = 5 * time.Second
	attendantPoll = 20 * time.Millisecond
)

// ownLayers locks the layers of a root for this process. While an attendant has them, it is asked to end, and
// after a while killed.
func ownLayers(ctx context.Context, root string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(root, attendantFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	started := time.Now()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, f.Truncate(0)
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			signal := unix.SIGTERM
			if time.Since(started) > attendantStop {
				signal = unix.SIGKILL
			}
			endAttendant(f, signal)
			if err = sleepContext(ctx, attendantPoll); err == nil {
				continue
			}
		}
		f.Close()
		return nil, fmt.Errorf("layers of %s: %w", root, err)
	}
}

// endAttendant sends a signal to the attendant whose number is in its file. Only the one that has locked the file writes its number there.
func endAttendant(f *os.File, signal syscall.Signal) {
	b := make([]byte, 16)
	n, _ := f.ReadAt(b, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil || pid <= 1 {
		return // it has not come so far
	}
	p, err := os.FindProcess(pid)
	if err == nil {
		_ = p.Signal(signal) // it may have ended
		_ = p.Release()
	}
}

func sleepContext(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// startAttendant starts one for the root in the background, with the options of this command that matter to it.
func startAttendant(root string, args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(root, "attendant.log"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(self, args...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start an attendant for %s: %w", root, err)
	}
	return cmd.Process.Release()
}
