// Package machine boots emulated virtual machines with QEMU, and ends them.
//
// A machine has disks, two serial lines that are files of the host (the first is the kernel's), no network, and if that is wanted the host's files,
// which it cannot change. It is emulated, so it needs no KVM, and says nothing about speed.
package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// ErrCut is why a machine ended that was to lose its power.
var ErrCut = errors.New("the power was cut")

// Machine is what to boot. Kernel, Console, Printed and Limit are needed.
type Machine struct {
	// Kernel is a bzImage. CommandLine is for it; what it does not know becomes the environment of the first process.
	Kernel      string
	CommandLine []string
	// MemoryMiB is 1536 if it is not set. There are two processors.
	MemoryMiB int
	// Disks are /dev/vda and so on.
	Disks []Disk
	// Share lets the machine read all files of the host: it is the 9p filesystem with the tag "host".
	Share bool
	// Console and Printed are files for the two serial lines.
	Console, Printed string
	// CutAfter is a line on the second serial line after which the machine is killed as by a power cut, if it is set: what the guest had not
	// written to a disk is lost.
	CutAfter string
	// Limit bounds the whole run.
	Limit time.Duration
}

// Disk is a file with the contents of a disk.
type Disk struct {
	File string
	// Keep keeps what is written to it. Otherwise that is thrown away when the machine ends.
	Keep bool
}

// Run boots the machine with the least priority the host has, and returns when it has ended. With CutAfter that is ErrCut.
func (m Machine) Run(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, m.Limit, fmt.Errorf("not finished after %v", m.Limit))
	defer cancel()
	// The file of an earlier run would be searched for the line.
	if err := os.RemoveAll(m.Printed); err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	if m.CutAfter != "" {
		go func() {
			if waitForLine(ctx, m.Printed, m.CutAfter) {
				end(ErrCut)
			}
		}()
	}
	cmd := exec.CommandContext(ctx, "nice", append([]string{"-n", "19", "qemu-system-x86_64"}, m.arguments()...)...)
	if len(m.Disks) > 0 { // for what is written to those that are not kept
		dir, err := os.MkdirTemp(filepath.Dir(m.Disks[0].File), "boot-*")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	}
	out, err := cmd.CombinedOutput()
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, ErrCut):
		return ErrCut
	case cause != nil:
		return cause
	case err != nil:
		return fmt.Errorf("qemu: %w\n%s", err, out)
	case m.CutAfter != "":
		return fmt.Errorf("the machine ended before %q", m.CutAfter)
	}
	return nil
}

func (m Machine) arguments() []string {
	memory := m.MemoryMiB
	if memory == 0 {
		memory = 1536
	}
	// Without no_timer_check the kernel panics at times when it is emulated. Its warnings are shown.
	line := append([]string{"console=ttyS0", "panic=-1", "loglevel=5", "no_timer_check", "tsc=unstable"}, m.CommandLine...)
	args := []string{
		// KVM is not asked for: where it is there but does not work, stock kernels end with an emulation failure. One thread emulates both processors:
		// with a thread for each, one may still execute the breakpoint under which the other has patched the kernel's code, and the kernel panics (int3).
		"-accel", "tcg,thread=single", "-smp", "2", "-cpu", "max", "-m", fmt.Sprint(memory),
		"-nodefaults", "-display", "none", "-no-reboot", "-serial", "file:" + m.Console, "-serial", "file:" + m.Printed,
		"-kernel", m.Kernel, "-append", strings.Join(line, " "),
	}
	for _, d := range m.Disks {
		// The host need not sync: a cut is one of the machine's power only.
		option := "file=" + d.File + ",format=raw,if=virtio,cache=unsafe"
		if !d.Keep {
			option += ",snapshot=on"
		}
		args = append(args, "-drive", option)
	}
	if m.Share {
		args = append(args, "-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap")
	}
	return args
}

// waitForLine waits until a file has a line. It says whether it came.
func waitForLine(ctx context.Context, name, line string) bool {
	for {
		b, err := os.ReadFile(name)
		if err == nil && hasLine(string(b), line) {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// hasLine leaves out a last line that has not ended.
func hasLine(text, line string) bool {
	for l := range strings.Lines(text) {
		if end := strings.TrimRight(l, "\r\n"); end == line && end != l {
			return true
		}
	}
	return false
}
