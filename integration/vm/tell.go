package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/vm/machine"
)

//go:embed init-host.sh
var initHostScript []byte

const (
	// stateBytes is the size of the disk for what stories write, most of which stays a hole.
	stateBytes = 16 << 30
	// storyMemoryMiB is enough for containerd, a registry and the containers; what changes of the host's tree is in memory, too.
	storyMemoryMiB = 4096
)

// tellAll runs stories, and records what became of them.
func tellAll(ctx context.Context, chosen []kernel, modeNames, pattern, record string) error {
	runs, err := plan(chosen, modeNames, pattern)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Join(lab.Cache(), "vm"), "run-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	repo, err := goOutput(ctx, "list", "-m", "-f", "{{.Dir}}")
	if err != nil {
		return err
	}
	if err := buildStories(ctx, work, runs); err != nil {
		return err
	}
	var errs []error
	for _, r := range runs {
		o, err := r.tell(ctx, repo, work)
		if err != nil {
			errs = append(errs, fmt.Errorf("linux %s: %w", r.name(), err))
		}
		r.print(o)
		if record != "" {
			errs = append(errs, r.record(record, o))
		}
	}
	return errors.Join(errs...)
}

// buildStories compiles what the machines run: there would be no end to it in them.
func buildStories(ctx context.Context, work string, runs []run) error {
	packages := map[string]bool{}
	for _, r := range runs {
		for _, s := range r.stories {
			packages[s.pkg] = true
		}
	}
	for p := range packages {
		if err := buildTests(ctx, work, p); err != nil {
			return err
		}
	}
	return errors.Join(
		goStatic(ctx, "build", "-trimpath", "-o", work+"/product/", module+"cmd/erofs-snapshotter", module+"cmd/erofs-snapshotter-keeper"),
		os.WriteFile(filepath.Join(work, "init-host.sh"), initHostScript, 0o755),
	)
}

// tell boots a machine for the stories of a run.
func (r run) tell(ctx context.Context, repo, work string) (outcome, error) {
	log := filepath.Join(lab.Cache(), "logs", "vm-"+strings.ReplaceAll(r.name(), " ", "-"))
	script := r.script(repo, work, os.Getenv("HOME"), lab.Program("")+":"+os.Getenv("PATH"), lab.Cache())
	state := filepath.Join(work, "state")
	if err := errors.Join(os.WriteFile(filepath.Join(work, "run.sh"), []byte(script), 0o600), makeState(ctx, state)); err != nil {
		return outcome{}, err
	}
	err := machine.Machine{
		Kernel: r.kernel.image(), CommandLine: shareCommandLine(work), MemoryMiB: storyMemoryMiB, Share: true,
		Disks:   []machine.Disk{{File: state, Keep: true}},
		Console: log + "-console.log", Printed: log + ".log", Limit: time.Duration(len(r.stories)+1) * limit,
	}.Run(ctx)
	printed, perr := readPrinted(log + ".log")
	console, cerr := os.ReadFile(log + "-console.log")
	o := understand(printed)
	err = errors.Join(err, perr, cerr, o.verify(r.marks()))
	for _, t := range troubles(string(console)) {
		err = errors.Join(err, fmt.Errorf("the kernel says: %s", t))
	}
	if err != nil {
		err = fmt.Errorf("%w\nsee %s.log and %s-console.log", err, log, log)
	}
	return o, err
}

// shareCommandLine lets the kernel take the host's files as its root. What is read once is kept: nobody changes it meanwhile.
func shareCommandLine(work string) []string {
	return []string{
		"root=host", "rootfstype=9p", "rootflags=trans=virtio,version=9p2000.L,msize=512000,cache=loose", "ro",
		"init=" + work + "/init-host.sh", "EROFS_VM_WORK=" + work,
	}
}

// makeState makes an empty disk for what is written.
func makeState(ctx context.Context, disk string) error {
	if err := os.RemoveAll(disk); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", disk, fmt.Sprintf("%dk", stateBytes>>10)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.ext4 %s: %w\n%s", disk, err, out)
	}
	return nil
}

func goOutput(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", args...).Output()
	return strings.TrimSpace(string(out)), err
}

// marks are those of all stories.
func (r run) marks() []string {
	names := []string{checkName}
	for i := range r.stories {
		names = append(names, mark(i))
	}
	return names
}

// result is what the table says of a story: how long it took if it was good.
func (r run) result(o outcome, i int) string {
	m := mark(i)
	status, ended := o.ended[m]
	switch {
	case !ended:
		return "did not end"
	case status != "0":
		return "failed"
	case len(o.passed[m]) == 0:
		return "nothing ran"
	}
	return o.took[m].String()
}

func (r run) print(o outcome) {
	for i, s := range r.stories {
		fmt.Printf("linux %s, %s: %s: %s\n", o.release, r.mode.name, s.name, r.result(o, i))
	}
}

var (
	choiceOfMount = regexp.MustCompile(`(?m)^mount mode that would be used: (.*)$`)
	choiceOfLazy  = regexp.MustCompile(`(?m)^loading on demand +(.*)$`)
)

// choice is what the daemon would do by itself, from what check has printed.
func choice(check string) string {
	mount, onDemand := choiceOfMount.FindStringSubmatch(check), choiceOfLazy.FindStringSubmatch(check)
	if mount == nil || onDemand == nil {
		return "?"
	}
	return mount[1] + "; on demand: " + onDemand[1]
}
