// Package benchkit is what the benchmarks have in common: a workshop with a fresh file system for each measurement, memory and page
// cache in a known state, medians and ratios, a description of the machine, tables.
//
// A benchmark is a program. Its main calls Main, which calls Flags.Parse and Run.
package benchkit

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Flags are those of every benchmark.
type Flags struct {
	Rounds   int
	Dir, Out string // absolute, and as it was given
}

// Parse adds the flags to those of fs, and parses and checks args.
func (f *Flags) Parse(fs *flag.FlagSet, args []string) error {
	fs.IntVar(&f.Rounds, "n", 5, "number of rounds")
	quick := fs.Bool("quick", false, "one round")
	fs.StringVar(&f.Dir, "dir", filepath.Join(os.TempDir(), "esb"), "work directory with 5 GiB of room; removed at the end")
	fs.StringVar(&f.Out, "out", "bench-results", "directory for raw CSV and tables")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *quick {
		f.Rounds = 1
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if f.Rounds < 1 {
		return fmt.Errorf("-n %d: want at least 1", f.Rounds)
	}
	var err error
	f.Dir, err = filepath.Abs(f.Dir)
	return err
}

// Choose returns those of the known things that a list of names, separated by commas, asks for.
func Choose[T any](list string, known []T, name func(T) string) ([]T, error) {
	var chosen []T
	for word := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(known, func(t T) bool { return name(t) == word })
		if i < 0 {
			return nil, fmt.Errorf("no %q, there are %s", word, Names(known, name))
		}
		chosen = append(chosen, known[i])
	}
	return chosen, nil
}

// Names is the list of names of all.
func Names[T any](list []T, name func(T) string) string {
	var names []string
	for _, t := range list {
		names = append(names, name(t))
	}
	return strings.Join(names, ",")
}

// Main is the main function of a benchmark: an interrupt ends run's context, an error the process.
func Main(name string, run func(ctx context.Context, args []string) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

// Measure measures in the workshop, writes raw values to files whose names begin with stamp, and tables to w. A measurement that
// fails does not end the others, but is an error.
type Measure func(work *Workshop, stamp string, w io.Writer) error

// Run describes the machine, calls measure, and prints and keeps what it wrote.
func (f Flags) Run(ctx context.Context, programs []Program, clear Clear, measure Measure) (err error) {
	machine, err := DescribeMachine(ctx, programs)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.Out, 0o755); err != nil {
		return err
	}
	work, err := OpenWorkshop(ctx, f.Dir, DiskBytes, clear)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, work.Close()) }()
	stamp := filepath.Join(f.Out, time.Now().Format("20060102-150405"))
	var text strings.Builder
	machine.Write(&text)
	err = measure(work, stamp, &text)
	fmt.Print(text.String())
	return errors.Join(err, os.WriteFile(stamp+".md", []byte(text.String()), 0o644))
}

// Progress is for whoever waits; results go to standard output.
func Progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
