// Vm runs the product on other kernels than this machine's, in virtual machines. The script kernel.sh beside it builds kernels from Debian's source
// packages. The machines are emulated by QEMU, so they need no KVM, and say nothing about speed. There are two kinds of runs.
//
// The static tests, `make vm`, need nothing but the kernel. The machine boots with a root disk that holds busybox, images, and statically linked
// tests: those of integration/vm/guest, integration/vm/fscache, and of the packages of the product that mount (prepare.go lists them). It has no
// access to the host's files.
//
//	layers ─converter─► images ─this kernel─► scans ──► plan ─┐
//	                      └───────────────────────────────────┴► root disk ─QEMU, other kernel─► guest.test: mount, scan, compare
//
// This machine's kernel, on which integration's fidelity tests compare images with what GNU tar extracts, is the reference: the plan
// says what it showed of each image and of each overlay mount, before and after changes. The guest's tests mount the same files, over
// loop devices and file-backed where the kernel can, and expect the same. What fsbackend/probe must answer is known for each series.
//
// The stories, `make test-vm`, are those of package integration, with containerd, runc, a registry and real images. The machine's root is the
// host's, with all programs, sources and images, through a read-only 9p share; what is written to it stays in the machine's memory.
// Labs are on an ext4 disk of their own. There is one boot for each kernel and mode (how layers are loaded on demand), and two for a story
// about a power cut. stories.go lists them. One of them:
//
//	go run ./integration/vm -kernels 6.12 -modes fscache -stories 'nginx, estargz'
//
// In both, tests print on one serial line, the kernel on another; a warning of the kernel fails the run too. They are kept in the cache's logs
// directory as vm-SERIES.log and vm-SERIES-console.log, or vm-SERIES-MODE.log and so on.
//
// With -record FILE a row for each kernel is added to the table that FILE ends with (docs/kernels.md), or stories are written into its table
// of stories.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/vm/guest"
)

func main() {
	series := flag.String("kernels", "", "comma separated series of kernels, such as 6.1,7.2; all that kernel.sh has built when empty")
	pattern := flag.String("stories", "", "run the stories whose names match this pattern (. for all), or \"short\", one for each mode, instead of the static tests")
	modeNames := flag.String("modes", "", "comma separated modes of stories: eager, fanotify, fscache; all that a kernel has when empty")
	record := flag.String("record", "", "add results to the tables in this file")
	logs := flag.String("logs", filepath.Join(lab.Cache(), "logs"), "directory for what is printed; two runs at the same time need two")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := do(ctx, *series, *pattern, *modeNames, *logs, *record); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func do(ctx context.Context, series, pattern, modeNames, logs, record string) error {
	chosen, err := choose(series)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(logs, 0o700); err != nil {
		return err
	}
	if pattern != "" {
		return tellAll(ctx, chosen, modeNames, pattern, logs, record)
	}
	return testAll(ctx, chosen, logs, record)
}

// testAll runs the static tests on each of the kernels.
func testAll(ctx context.Context, chosen []kernel, logs, record string) error {
	work, err := os.MkdirTemp(filepath.Join(lab.Cache(), "vm"), "run-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	plan, disk, err := makeRoot(ctx, work)
	if err != nil {
		return err
	}
	var errs []error
	for _, k := range chosen {
		row, err := try(ctx, k, plan, disk, logs)
		if err != nil {
			errs = append(errs, fmt.Errorf("linux %s: %w", k.series, err))
		}
		if row == "" {
			continue
		}
		fmt.Println(row)
		if record != "" {
			errs = append(errs, appendLine(record, row))
		}
	}
	return errors.Join(errs...)
}

// choose returns the kernels that were asked for.
func choose(series string) ([]kernel, error) {
	var chosen []kernel
	for _, k := range kernels {
		_, err := os.Stat(k.image())
		asked := strings.Contains(","+series+",", ","+k.series+",")
		if asked && err != nil {
			return nil, fmt.Errorf("no linux %s (integration/vm/kernel.sh %s): %w", k.series, k.series, err)
		}
		if asked || series == "" && err == nil {
			chosen = append(chosen, k)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no kernel for %q: integration/vm/kernel.sh builds them", series)
	}
	return chosen, nil
}

// makeRoot makes the plan and the root disk that all kernels boot from.
func makeRoot(ctx context.Context, work string) (guest.Plan, string, error) {
	root, disk := filepath.Join(work, "root"), filepath.Join(work, "disk")
	tests, vm := filepath.Join(root, "tests"), filepath.Join(root, "vm")
	if err := errors.Join(os.MkdirAll(tests, 0o755), os.Mkdir(vm, 0o755)); err != nil {
		return guest.Plan{}, "", err
	}
	if err := buildTests(ctx, tests, programs...); err != nil {
		return guest.Plan{}, "", err
	}
	layers := append(madeLayers(), cachedLayers()...)
	plan, err := prepare(ctx, vm, layers, stacksOf(layers))
	if err != nil {
		return guest.Plan{}, "", err
	}
	return plan, disk, makeDisk(ctx, root, disk)
}

// try boots one kernel. The row says what happened, also when the error says that it was not good.
func try(ctx context.Context, k kernel, plan guest.Plan, disk, logs string) (row string, err error) {
	log := filepath.Join(logs, "vm-"+k.series)
	start := time.Now()
	printed, err := boot(ctx, k, disk, log+"-console.log")
	took := time.Since(start).Round(time.Second)
	err = errors.Join(err, os.WriteFile(log+".log", []byte(printed), 0o600))
	console, cerr := os.ReadFile(log + "-console.log")
	o := understand(printed)
	err = errors.Join(err, cerr, o.verify(testPrograms()))
	for _, t := range troubles(string(console)) {
		err = errors.Join(err, fmt.Errorf("the kernel says: %s", t))
	}
	if err != nil {
		err = fmt.Errorf("%w\nsee %s.log and %s-console.log", err, log, log)
	}
	fmt.Fprintf(os.Stderr, "linux %s: %v\n", k.series, took)
	if o.release == "" {
		return "", err
	}
	return o.row(plan, err), err
}

// testPrograms are the names of the programs in the virtual machine.
func testPrograms() []string {
	var names []string
	for _, p := range programs {
		names = append(names, program(p))
	}
	return names
}

// row is a line of the table in docs/kernels.md.
func (o outcome) row(plan guest.Plan, err error) string {
	tests := guestProgram
	equal := func(prefix string, of int) string {
		return fmt.Sprintf("%d of %d equal", o.passedBelow(tests, prefix), of)
	}
	passed, skipped := 0, 0
	for _, p := range testPrograms() {
		passed, skipped = passed+len(o.passed[p]), skipped+len(o.skipped[p])
	}
	verdict := "good"
	switch {
	case len(o.failed) > 0:
		verdict = "failed: " + strings.Join(o.failed, ", ")
	case err != nil:
		verdict = "not good"
	}
	fileBacked := equal("TestImages/file/", len(plan.Images))
	for _, name := range o.skipped[tests] {
		if strings.HasPrefix(name, "TestImages/file/") {
			fileBacked = "not in this kernel"
		}
	}
	cells := []string{time.Now().Format(time.DateOnly), o.release, fileBacked, equal("TestImages/loop/", len(plan.Images)),
		equal("TestStacks/", len(plan.Stacks)), fmt.Sprintf("%d passed, %d failed, %d skipped", passed, len(o.failed), skipped), verdict}
	return "| " + strings.Join(cells, " | ") + " |"
}

func appendLine(name, line string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, line)
	return errors.Join(err, f.Close())
}
