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
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/vm/machine"
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

// commandLine is that of the kernel for the static tests. What it does not know is the environment of the first process.
func (k kernel) commandLine() []string {
	return []string{
		"root=/dev/vda", "rw", "init=/init",
		guest.DirVariable + "=/vm",
		guest.AnswersVariable + "=" + strings.Join(append(always, k.answers...), ","),
		"EROFS_TEST_REQUIRE=" + strings.Join(append([]string{"root", "erofs", "loop"}, k.answers...), ","),
	}
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

// boot runs the tests on the disk under k. It returns what the tests printed; the kernel's messages are in the file console.
func boot(ctx context.Context, k kernel, disk, console string) (string, error) {
	printed := filepath.Join(filepath.Dir(disk), "printed")
	err := machine.Machine{
		Kernel: k.image(), CommandLine: k.commandLine(), Disks: []machine.Disk{{File: disk}},
		Console: console, Printed: printed, Limit: bootTimeout,
	}.Run(ctx)
	if err != nil {
		err = fmt.Errorf("linux %s: %w", k.series, err)
	}
	text, rerr := readPrinted(printed)
	return text, errors.Join(err, rerr)
}

// readPrinted reads what came over a serial line.
func readPrinted(name string) (string, error) {
	b, err := os.ReadFile(name)
	return strings.ReplaceAll(string(b), "\r\n", "\n"), err
}
