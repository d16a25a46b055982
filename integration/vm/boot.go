package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/vm/guest"
)

//go:embed init.sh
var initScript []byte

const (
	// diskBytes is the size of the root disk, most of which stays a hole.
	diskBytes = 4 << 30
	// bootTimeout bounds one virtual machine. Emulated, all tests take some minutes on two loaded cores.
	bootTimeout = 30 * time.Minute
)

// kernel is a series that kernel.sh builds.
type kernel struct {
	series string
	// answers is what fsbackend/probe must find there.
	answers []string
}

// Debian's kernels have no EROFS over fscache, ours do up to 6.12; upstream removed it in 7.2.
var kernels = []kernel{
	{"6.1", []string{"fscache"}},
	{"6.12", []string{"file-backed", "fscache"}},
	{"7.2", []string{"file-backed", "pre-content"}},
}

// always is what every kernel that we support must answer yes to.
var always = []string{"erofs", "loop", "overlay", "overlay-index", "overlay-redirect", "overlay-metacopy"}

func (k kernel) image() string { return filepath.Join(lab.Cache(), "vm", "linux-"+k.series, "bzImage") }

// commandLine is that of the kernel. What it does not know is the environment of the first process. Without no_timer_check the
// kernel panics at times when it is emulated. Its warnings are shown.
func (k kernel) commandLine() string {
	return strings.Join([]string{
		"root=/dev/vda", "rw", "init=/init", "console=ttyS0", "panic=-1", "loglevel=5", "no_timer_check", "tsc=unstable",
		guest.DirVariable + "=/vm",
		guest.AnswersVariable + "=" + strings.Join(append(always, k.answers...), ","),
		"EROFS_TEST_REQUIRE=" + strings.Join(append([]string{"root", "erofs", "loop"}, k.answers...), ","),
	}, " ")
}

// makeDisk makes the root disk: busybox, the script that runs first, the tests, and the directory with the plan.
func makeDisk(ctx context.Context, dir, disk string) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	for _, d := range []string{"bin", "dev", "proc", "sys", "tmp", "run", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "bin/busybox"), program, 0o755),
		os.WriteFile(filepath.Join(dir, "init"), initScript, 0o755),
		goStatic(ctx, "build", "-o", filepath.Join(dir, "bin/id"), module+"integration/vm/id"),
	); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-d", dir, disk, fmt.Sprintf("%dk", diskBytes>>10)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.ext4 %s: %w\n%s", disk, err, out)
	}
	return nil
}

// boot runs the tests on the disk under k, with the least priority the host has. What is written to the disk is thrown away. It
// returns what the tests printed; the kernel's messages are in the file console.
func boot(ctx context.Context, k kernel, disk, console string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	dir, err := os.MkdirTemp(filepath.Dir(disk), "boot-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	printed := filepath.Join(dir, "printed")
	cmd := exec.CommandContext(ctx, "nice", "-n", "19", "qemu-system-x86_64",
		// KVM is not asked for: where it is there but does not work, stock kernels end with an emulation failure.
		"-accel", "tcg,thread=multi", "-smp", "2", "-cpu", "max", "-m", "1536",
		"-nodefaults", "-display", "none", "-no-reboot", "-serial", "file:"+console, "-serial", "file:"+printed,
		"-kernel", k.image(), "-append", k.commandLine(),
		"-drive", "file="+disk+",format=raw,if=virtio,snapshot=on")
	cmd.Env = append(os.Environ(), "TMPDIR="+dir) // for what is written to the disk
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("not finished after %v: %w", bootTimeout, context.Cause(ctx))
	}
	if err != nil {
		err = fmt.Errorf("qemu with linux %s: %w\n%s", k.series, err, out)
	}
	tests, rerr := os.ReadFile(printed)
	return strings.ReplaceAll(string(tests), "\r\n", "\n"), errors.Join(err, rerr)
}
