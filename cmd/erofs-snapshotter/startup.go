package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/startup"
)

// What an image starts is read by a process of its own, for two reasons: a read of data that are missing ends early only with its process, and
// files of an image are looked into that anybody may have made. That process can read all files, and has no other rights.

const (
	// startupTime is how long that may take. A container waits for the rest of it as for all else.
	startupTime = 20 * time.Second
	// startupRoot is the descriptor of the image's root directory in that process.
	startupRoot = 3
	// maxProgram bounds what is said about a program. A configuration is shorter.
	maxProgram = 16 << 20
	// nobody is the user that process runs as.
	nobody = 65534
)

// startupCommand is what serve starts.
func startupCommand() *cli.Command {
	return &cli.Command{
		Name:   "startup",
		Usage:  "read what an image's program needs to start; serve starts it",
		Hidden: true,
		Description: "The image's root directory is descriptor 3, the program is standard input.\n\n" +
			"Example:\n\n   echo '{\"args\":[\"/bin/sh\"]}' | erofs-snapshotter startup 3</",
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := noArguments(c); err != nil {
				return err
			}
			// serve is the last to be killed when memory is short, and what it starts would be, too.
			_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
			var p startup.Program
			if err := json.NewDecoder(io.LimitReader(os.Stdin, maxProgram)).Decode(&p); err != nil {
				return fmt.Errorf("program: %w", err)
			}
			report, err := startup.Fetch(ctx, os.NewFile(startupRoot, "root"), p)
			return errors.Join(json.NewEncoder(c.Root().Writer).Encode(report), err)
		},
	}
}

// readStartup starts such a process and waits for it.
func readStartup(ctx context.Context, root *os.File, p startup.Program) (report startup.Report, err error) {
	ctx, cancel := context.WithTimeout(ctx, startupTime)
	defer cancel()
	in, err := json.Marshal(p)
	if err != nil {
		return report, err
	}
	var out, message bytes.Buffer
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "startup") // this very program, even if there is a newer one at its place
	cmd.Args[0] = os.Args[0]
	cmd.Dir = "/"
	cmd.Env = []string{} // nothing of ours is its business
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &message
	cmd.ExtraFiles = []*os.File{root}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig:   unix.SIGKILL,
		Credential:  &syscall.Credential{Uid: nobody, Gid: nobody},
		AmbientCaps: []uintptr{unix.CAP_DAC_READ_SEARCH}, // programs of an image may be readable by their owner only
	}
	cmd.WaitDelay = time.Second
	// The signal at the parent's death comes when the thread ends that has started the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Start()
	// A change of user takes from this process, too, whose memory the new one shares until it executes, that it may leave a core dump.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
	if err == nil {
		err = cmd.Wait()
	}
	if ctx.Err() != nil {
		return report, fmt.Errorf("stopped: %w", context.Cause(ctx))
	}
	if out.Len() > 0 {
		err = errors.Join(err, json.Unmarshal(out.Bytes(), &report))
	}
	if err != nil {
		return report, fmt.Errorf("%w: %s", err, strings.TrimSpace(message.String()))
	}
	return report, nil
}
