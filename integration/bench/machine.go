package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// pinned are the versions that results of different days are compared for. Another version is an error, not a footnote: `make tools`
// installs the right ones.
var pinned = []struct {
	program string
	args    []string
	version string // "" is only printed
}{
	{lab.Program("containerd"), []string{"--version"}, "2.4.2"},
	{lab.Program("runc"), []string{"--version"}, "1.5.2"},
	{lab.Program("mkfs.erofs"), []string{"--version"}, "1.9.4"},
	{"igzip", []string{"--version"}, ""},
	{"zstd", []string{"--version"}, ""},
}

// machine is what has to be known to read the numbers.
type machine struct {
	date     time.Time
	ours     string
	system   string
	programs []string
	load     float64
}

func describeMachine(ctx context.Context) (machine, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	if err := lab.Tools.Missing(); err != nil {
		return machine{}, err
	}
	m := machine{date: time.Now(), ours: "unknown", system: system(), load: loadAverage()}
	if out, err := exec.CommandContext(ctx, "git", "describe", "--tags", "--always", "--dirty").Output(); err == nil {
		m.ours = strings.TrimSpace(string(out))
	}
	for _, p := range pinned {
		out, err := exec.CommandContext(ctx, p.program, p.args...).Output()
		if err != nil {
			return machine{}, fmt.Errorf("%s: %w (make tools)", p.program, err)
		}
		first, _, _ := strings.Cut(string(out), "\n")
		if !strings.Contains(first, p.version) {
			return machine{}, fmt.Errorf("%s is %q, the benchmark is defined for version %s (make tools)", p.program, first, p.version)
		}
		m.programs = append(m.programs, strings.Trim(first, "* "))
	}
	return m, nil
}

// system is the kernel, the processors and the memory.
func system() string {
	var u unix.Utsname
	var info unix.Sysinfo_t
	if unix.Uname(&u) != nil || unix.Sysinfo(&info) != nil {
		return "unknown"
	}
	model := "unknown model"
	if cpuinfo, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(cpuinfo)) {
			if rest, ok := strings.CutPrefix(line, "model name"); ok {
				model = strings.TrimLeft(strings.TrimSpace(rest), ": ")
				break
			}
		}
	}
	return fmt.Sprintf("Linux %s, %d CPUs (%s), %d GiB of memory",
		unix.ByteSliceToString(u.Release[:]), runtime.NumCPU(), model, info.Totalram*uint64(info.Unit)>>30)
}

// loadAverage is that of the last minute, -1 if it is not known.
func loadAverage() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return -1
	}
	first, _, _ := strings.Cut(string(b), " ")
	load, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return -1
	}
	return load
}

func (m machine) write(w io.Writer) {
	fmt.Fprintf(w, "- date: %s\n- erofs-snapshotter: %s\n- machine: %s, load average %.2f at the start\n- versions: %s\n\n",
		m.date.Format(time.DateOnly), m.ours, m.system, m.load, strings.Join(m.programs, ", "))
}
