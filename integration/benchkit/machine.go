package benchkit

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
)

// Program is a third-party program that a benchmark uses.
type Program struct {
	Path string
	// Version is the one that results of different days are compared for. Another is an error, not a footnote: `make tools` installs
	// the right ones. "" is only printed.
	Version string
}

// Machine is what has to be known to read the numbers.
type Machine struct {
	date     time.Time
	ours     string
	system   string
	programs []string
	load     float64
}

// DescribeMachine asks all programs for their versions.
func DescribeMachine(ctx context.Context, programs []Program) (Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	m := Machine{date: time.Now(), ours: "unknown", system: system(), load: LoadAverage()}
	if out, err := exec.CommandContext(ctx, "git", "describe", "--tags", "--always", "--dirty").Output(); err == nil {
		m.ours = strings.TrimSpace(string(out))
	}
	for _, p := range programs {
		out, err := exec.CommandContext(ctx, p.Path, "--version").Output()
		if err != nil {
			return Machine{}, fmt.Errorf("%s: %w (make tools)", p.Path, err)
		}
		first, _, _ := strings.Cut(string(out), "\n")
		if !strings.Contains(first, p.Version) {
			return Machine{}, fmt.Errorf("%s is %q, the benchmark is defined for version %s (make tools)", p.Path, first, p.Version)
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

// LoadAverage is that of the last minute, -1 if it is not known.
func LoadAverage() float64 {
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

// Write writes lines of Markdown.
func (m Machine) Write(w io.Writer) {
	fmt.Fprintf(w, "- date: %s\n- erofs-snapshotter: %s\n- machine: %s, load average %.2f at the start\n- versions: %s\n\n",
		m.date.Format(time.DateOnly), m.ours, m.system, m.load, strings.Join(m.programs, ", "))
}
