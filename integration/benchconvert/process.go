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
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// methodFlag makes this program run a method.
const methodFlag = "-method"

// job is what a method does its work on. output is empty if the method writes nothing.
type job struct {
	input, output string
	digest        digest.Digest // of the input
}

// report is what a measured process says on its standard output.
type report struct {
	Wall time.Duration `json:"wall,omitempty"`
	// CPU is processor time of the process and those that it waited for. Zero from a script.
	CPU time.Duration `json:"cpu,omitempty"`
	// PeakKiB is the resident memory of the largest process. It comes from time(1), which starts the process: what the kernel counts
	// begins with the memory of the starter, and we are large.
	PeakKiB int64  `json:"peak_kib,omitempty"`
	Inodes  int64  `json:"inodes,omitempty"` // of the image that we made
	Remark  string `json:"remark,omitempty"`

	after func(*report) error // is not measured
}

// timedScript runs a script and reports how long it took.
const timedScript = `begin=${EPOCHREALTIME/./}
{
%s
} >&2
end=${EPOCHREALTIME/./}
echo "{\"wall\": $((end - begin))000}"`

// start runs a method in a process of its own.
func (m method) start(ctx context.Context, j job) (report, error) {
	argv := bash(fmt.Sprintf(timedScript, m.script))
	if m.run != nil {
		self, err := os.Executable()
		if err != nil {
			return report{}, err
		}
		argv = []string{self, methodFlag, m.name, j.input, j.output, j.digest.String()}
	}
	argv = append([]string{"time", "-q", "-o", "/dev/stdout", "-f", `{"peak_kib": %M}`}, argv...)
	cmd := command(ctx, argv, j.input, j.output)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return report{}, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	r := report{CPU: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
	return r, r.read(&stdout)
}

// read adds what JSON objects say.
func (r *report) read(in io.Reader) error {
	for d := json.NewDecoder(in); ; {
		if err := d.Decode(r); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("report of the process: %w", err)
		}
	}
	if r.Wall <= 0 || r.CPU <= 0 || r.PeakKiB <= 0 {
		return fmt.Errorf("the process reports time %v, processor time %v, memory %d KiB", r.Wall, r.CPU, r.PeakKiB)
	}
	return nil
}

// runMethod is the process of a method that is written in Go.
func runMethod(ctx context.Context, args []string) error {
	if len(args) != 4 {
		return fmt.Errorf("%s takes NAME INPUT OUTPUT DIGEST", methodFlag)
	}
	for _, m := range methods {
		if m.name != args[0] || m.run == nil {
			continue
		}
		var r report
		j := job{input: args[1], output: args[2], digest: digest.Digest(args[3])}
		begin, used := time.Now(), processorTime()
		if err := m.run(ctx, j, &r); err != nil {
			return err
		}
		r.Wall, r.CPU = time.Since(begin), processorTime()-used
		if r.after != nil {
			if err := r.after(&r); err != nil {
				return err
			}
		}
		return json.NewEncoder(os.Stdout).Encode(r)
	}
	return fmt.Errorf("no method %q is written in Go", args[0])
}

// processorTime is what this process and those that it waited for have used.
func processorTime() time.Duration {
	var total time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err == nil { // fails for an unknown who only
			total += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return total
}

func bash(script string) []string { return []string{"bash", "-e", "-o", "pipefail", "-c", script} }

// command is a program that finds the lab's programs first and the files in $IN and $OUT. When ctx ends so does its whole group.
func command(ctx context.Context, argv []string, in, out string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "IN="+in, "OUT="+out, "PATH="+lab.Program("")+":"+os.Getenv("PATH"), "LC_ALL=C")
	if out != "" {
		cmd.Env = append(cmd.Env, "TMPDIR="+out) // as containerd does
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// shell runs a script that is not measured.
func shell(ctx context.Context, script, in, out string) error {
	cmd := command(ctx, bash(script), in, out)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s (%s): %w: %s", script, in, err, text)
	}
	return nil
}
