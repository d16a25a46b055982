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
	"slices"
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
func tellAll(ctx context.Context, chosen []kernel, modeNames, pattern, logs, record string) error {
	runs, err := plan(chosen, modeNames, pattern)
	if err != nil {
		return err
	}
	p := place{
		home: os.Getenv("HOME"), path: lab.Program("") + ":" + os.Getenv("PATH"), cache: lab.Cache(), logs: logs,
	}
	if p.work, err = os.MkdirTemp(filepath.Join(lab.Cache(), "vm"), "run-*"); err != nil {
		return err
	}
	defer os.RemoveAll(p.work)
	if p.repo, err = goOutput(ctx, "list", "-m", "-f", "{{.Dir}}"); err != nil {
		return err
	}
	if err := errors.Join(buildStories(ctx, p.work, runs), pushImages(ctx, p.work, runs)); err != nil {
		return err
	}
	var errs []error
	for _, r := range runs {
		o, err := r.tell(ctx, p)
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

// pushImages makes the files of a registry with the images of all stories, so that machines need not push them.
func pushImages(ctx context.Context, work string, runs []run) (err error) {
	var images []string
	for _, r := range runs {
		for _, s := range r.stories {
			images = append(images, s.images...)
		}
	}
	slices.Sort(images)
	l, err := lab.Start(ctx, lab.Options{NoDaemon: true, Images: slices.Compact(images)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := l.StopRegistry(); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "mv", l.RegistryFiles(), filepath.Join(work, "registry")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mv: %w\n%s", err, out)
	}
	return nil
}

// tell boots a machine for the stories of a run, and further ones for those with a power cut. The logs are vm-SERIES-MODE.log, and with
// -cut-N before the dot for the story with that number.
func (r run) tell(ctx context.Context, p place) (outcome, error) {
	log := filepath.Join(p.logs, "vm-"+strings.ReplaceAll(r.name(), " ", "-"))
	var together []int
	for i, s := range r.stories {
		if !s.cut {
			together = append(together, i)
		}
	}
	var all strings.Builder
	var errs []error
	boot := func(suffix string, numbers []int, fresh bool, cutAfter string, env ...string) (good bool) {
		printed, err := r.boot(ctx, p, log+suffix, numbers, fresh, cutAfter, env...)
		if cutAfter == "" || err != nil {
			all.WriteString(printed)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%w\nsee %s.log and %s-console.log", err, log+suffix, log+suffix))
		}
		return err == nil
	}
	if len(together) > 0 {
		boot("", together, true, "")
	}
	for i, s := range r.stories {
		if s.cut && boot(fmt.Sprintf("-cut-%d", i), []int{i}, true, cutMark, "EROFS_TEST_CUT=before") {
			boot(fmt.Sprintf("-cut-%d", i), []int{i}, false, "", "EROFS_TEST_CUT=after")
		}
	}
	o := understand(all.String())
	return o, errors.Join(append(errs, o.verify(r.marks()), r.ran(o))...)
}

// boot runs some stories in one machine, and returns what they printed. Without fresh it has the disk of the machine before.
func (r run) boot(ctx context.Context, p place, log string, numbers []int, fresh bool, cutAfter string, env ...string) (string, error) {
	state := filepath.Join(p.work, "state")
	err := os.WriteFile(filepath.Join(p.work, "run.sh"), []byte(r.script(p, numbers, env...)), 0o600)
	if fresh {
		err = errors.Join(err, makeState(ctx, state))
	}
	if err != nil {
		return "", err
	}
	err = machine.Machine{
		Kernel: r.kernel.image(), CommandLine: shareCommandLine(p.work), MemoryMiB: storyMemoryMiB, Share: true,
		Disks:   []machine.Disk{{File: state, Keep: true}},
		Console: log + "-console.log", Printed: log + ".log", CutAfter: cutAfter, Limit: time.Duration(len(numbers)+1) * limit,
	}.Run(ctx)
	if cutAfter != "" && errors.Is(err, machine.ErrCut) {
		err = nil
	}
	printed, perr := readPrinted(log + ".log")
	console, cerr := os.ReadFile(log + "-console.log")
	err = errors.Join(err, perr, cerr)
	for _, t := range troubles(string(console)) {
		err = errors.Join(err, fmt.Errorf("the kernel says: %s", t))
	}
	return printed, err
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

// ran is an error that names the stories that were skipped, or of which no test ran: both end well.
func (r run) ran(o outcome) error {
	var errs []error
	for i, s := range r.stories {
		m := mark(i)
		if o.ended[m] == "0" && (len(o.passed[m]) == 0 || len(o.skipped[m]) > 0) {
			errs = append(errs, fmt.Errorf("%s: %d tests passed, skipped %q", s.name, len(o.passed[m]), o.skipped[m]))
		}
	}
	return errors.Join(errs...)
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
		if o.ended[mark(i)] != "0" {
			fmt.Printf("the end of what it printed:\n%s\n", o.tail(mark(i)))
		}
	}
}

var (
	choiceOfMount    = regexp.MustCompile(`(?m)^mount mode that would be used: (.*)$`)
	answerOnDemand   = regexp.MustCompile(`(?m)^loading on demand +(.*)$`)
	choiceOfOnDemand = regexp.MustCompile(`(?m)^missing data would be asked for by (\w+):`)
)

// choice is what the daemon would do by itself, from what check has printed.
func choice(check string) string {
	mount, onDemand := choiceOfMount.FindStringSubmatch(check), choiceOfOnDemand.FindStringSubmatch(check)
	if onDemand == nil {
		onDemand = answerOnDemand.FindStringSubmatch(check)
	}
	if mount == nil || onDemand == nil {
		return "?"
	}
	return mount[1] + "; " + onDemand[1]
}
