package main

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// outcome is what the virtual machine printed, understood.
type outcome struct {
	release string
	// ended has the exit status of each program, and passed and skipped its tests by full name.
	ended           map[string]string
	took            map[string]time.Duration // where that was said
	passed, skipped map[string][]string
	printed         map[string]string // between the marks of a program
	rest            string            // after the last mark of an end
	failed          []string
}

var (
	endMark     = regexp.MustCompile(`^=== vm: end (\S+) (\d+)(?: after (\d+) s)?$`)
	releaseMark = regexp.MustCompile(`^=== vm: release (\S+)$`)
	verdict     = regexp.MustCompile(`^ *--- (PASS|FAIL|SKIP): (\S+)`)
)

// understand reads the output of the tests. A test is counted for the program whose end comes next.
func understand(printed string) outcome {
	o := outcome{ended: map[string]string{}, took: map[string]time.Duration{}, printed: map[string]string{},
		passed: map[string][]string{}, skipped: map[string][]string{}}
	var passed, skipped []string
	var said strings.Builder
	for line := range strings.Lines(printed) {
		line = strings.TrimRight(line, "\n")
		if m := verdict.FindStringSubmatch(line); m != nil {
			switch m[1] {
			case "PASS":
				passed = append(passed, m[2])
			case "SKIP":
				skipped = append(skipped, m[2])
			case "FAIL":
				o.failed = append(o.failed, m[2])
			}
		}
		if m := endMark.FindStringSubmatch(line); m != nil {
			if seconds, err := strconv.Atoi(m[3]); err == nil {
				o.took[m[1]] = time.Duration(seconds) * time.Second
			}
			o.ended[m[1]], o.passed[m[1]], o.skipped[m[1]] = m[2], passed, skipped
			o.printed[m[1]] = said.String()
			passed, skipped = nil, nil
			said.Reset()
		} else if !strings.HasPrefix(line, "=== vm: ") {
			fmt.Fprintln(&said, line)
		}
		if m := releaseMark.FindStringSubmatch(line); m != nil {
			o.release = m[1]
		}
	}
	o.rest = said.String()
	return o
}

// tail is the end of what a program printed that did not end well, for those who have only the output of a run.
func (o outcome) tail(program string) string {
	const most = 100
	said, ended := o.printed[program]
	if !ended {
		said = o.rest
	}
	lines := slices.Collect(strings.Lines(said))
	return strings.Join(lines[max(0, len(lines)-most):], "")
}

// verify says why the run is not a good one: a test failed, or did not run.
func (o outcome) verify(programs []string) error {
	var errs []error
	for _, p := range programs {
		if status, ok := o.ended[p]; !ok {
			errs = append(errs, fmt.Errorf("%s did not end", p))
		} else if status != "0" {
			errs = append(errs, fmt.Errorf("%s ended with status %s", p, status))
		}
	}
	if o.release == "" {
		errs = append(errs, errors.New("the virtual machine did not reach its end"))
	}
	if len(o.failed) > 0 {
		errs = append(errs, fmt.Errorf("failed: %s", strings.Join(o.failed, ", ")))
	}
	return errors.Join(errs...)
}

// trouble matches what a kernel prints when something is wrong with itself.
var trouble = regexp.MustCompile(`BUG:|WARNING:|Oops|Call Trace|general protection|Kernel panic|blocked for more than`)

// troubles returns those lines of a kernel's messages.
func troubles(console string) []string {
	lines := strings.Split(console, "\n")
	return slices.DeleteFunc(lines, func(l string) bool { return !trouble.MatchString(l) })
}

// passedBelow counts the passed tests of a program whose names begin with a prefix, such as that of all subtests of one test.
func (o outcome) passedBelow(program, prefix string) int {
	n := 0
	for _, name := range o.passed[program] {
		if strings.HasPrefix(name, prefix) {
			n++
		}
	}
	return n
}
