package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// startTimeout bounds Start and Detach. Without --replace it takes milliseconds.
	startTimeout = succeedTimeout + 10*time.Second
	readyMessage = "ready\n"
)

// Start has program, which is erofs-snapshotter-keeper, run with args as a keeper at address, unless one listens there. When it returns nil,
// one does. It does not end with this process, and logs to log, or nowhere if that is nil. Two may call it at once.
//
// It is for daemons that no service manager runs: what a unit of systemd starts ends with the unit. The keeper has one of its own.
func Start(ctx context.Context, address, program string, log *os.File, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if _, err := Status(ctx, address); err == nil {
		return nil
	}
	absolute, err := filepath.Abs(address)
	if err != nil {
		return fmt.Errorf("start a keeper: %w", err)
	}
	var message bytes.Buffer
	cmd := exec.CommandContext(ctx, program, append([]string{"--address", absolute, "--detach"}, args...)...)
	// Systemd waits for what this process has to say, not for a keeper.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "NOTIFY_SOCKET=") })
	if log != nil {
		cmd.Stdout = log // becomes the keeper's standard error
	}
	cmd.Stderr = &message
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && waitListening(ctx, address) == nil {
			return nil // somebody else was quicker
		}
		return fmt.Errorf("start %s at %s: %w: %s", program, address, err, strings.TrimSpace(message.String()))
	}
	return nil
}

// waitListening waits for a keeper that somebody else is starting now.
func waitListening(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for {
		_, err := Status(ctx, address)
		if err == nil || sleep(ctx, 20*time.Millisecond) != nil {
			return err
		}
	}
}

// Detach runs this program with args, which have to make it call Serve, and with --ready-fd, whose descriptor it has to give to
// ReportReady. The new process is no child of this process's parent, is in no terminal, and writes its messages to this process's
// standard output. Detach returns when it is ready.
func Detach(ctx context.Context, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	program, err := os.Executable()
	if err != nil {
		return err
	}
	ready, report, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	// Whoever started this process may have left descriptors open.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return os.NewSyscallError("close_range", err)
	}
	cmd := exec.Command(program, append(args, "--ready-fd", strconv.Itoa(3))...)
	cmd.Args[0] = os.Args[0]
	cmd.Dir = "/"
	cmd.Stderr = os.Stdout
	cmd.ExtraFiles = []*os.File{report}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	report.Close()
	if err != nil {
		return err
	}
	return waitReady(ctx, ready, cmd.Process.Pid)
}

// waitReady reads what the new process says. It is not killed, whatever happens: it may be the only one that holds something.
func waitReady(ctx context.Context, ready *os.File, pid int) error {
	interrupt := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })
	defer interrupt()
	said, err := io.ReadAll(io.LimitReader(ready, 4<<10))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("process %d is not ready yet: %w", pid, context.Cause(ctx))
	case err != nil:
		return err
	case string(said) == readyMessage:
		return nil
	case len(said) > 0:
		return errors.New(strings.TrimSpace(string(said)))
	}
	return fmt.Errorf("process %d ended before it was ready", pid)
}

// ReportReady tells whoever runs Detach that this process is ready, or why not, and systemd, if it is there.
func ReportReady(fd int, failure error) error {
	var err error
	if failure == nil {
		err = notify("READY=1")
	}
	if fd < 3 {
		return err
	}
	text := readyMessage
	if failure != nil {
		text = failure.Error() + "\n"
	}
	f := os.NewFile(uintptr(fd), "pipe to the starting process")
	_, _ = f.WriteString(text) // nobody may be waiting any more
	return errors.Join(err, f.Close())
}
