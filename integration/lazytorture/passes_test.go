package lazytorture

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// hang is how long a read may take.
var hang = time.Minute * testenv.Slow

// reader has a process read an instance in one way.
func (w *world) reader(way string, in *instance) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"=reader", fmt.Sprintf("%s=%s %s %d", readerEnv, way, in.root, in.seed))
	out, err := cmd.StdoutPipe()
	cmd.Stderr = cmd.Stdout
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		w.t.Error(err)
		return
	}
	lines := make(chan []string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- strings.Fields(s.Text())
		}
	}()
	done, begun := false, false
	w.listen(lines, cmd, func(words []string) {
		if !begun && words[0] == "waits" && words[2] != "0" {
			begun = true
			w.begun.Add(1)
		}
		done = w.hears(way, in, words) || done
	})
	if err := cmd.Wait(); !done {
		w.t.Errorf("reader %s of layer %d ended early: %v", way, in.seed, err)
	}
}

// listen has what a reader says heard, and kills it if it says nothing, or that it waits, for too long.
func (w *world) listen(lines <-chan []string, cmd *exec.Cmd, hear func(words []string)) {
	for {
		var waits time.Duration
		select {
		case words, more := <-lines:
			if !more {
				return
			}
			waits = w.noteWait(words)
			hear(words)
		case <-time.After(hang):
			waits = hang
		}
		if waits < hang {
			continue
		}
		w.t.Errorf("a reader hangs:\n%s", stacks(cmd.Process.Pid))
		_ = cmd.Process.Kill() // it may have ended
		for range lines {
		}
		return
	}
}

// noteWait returns for how long a reader says that a read has waited.
func (w *world) noteWait(words []string) time.Duration {
	var ms int64
	if words[0] == "waits" {
		_, _ = fmt.Sscan(words[1], &ms) // its own number
	}
	waits := time.Duration(ms) * time.Millisecond
	w.mu.Lock()
	defer w.mu.Unlock()
	w.longest = max(w.longest, waits)
	return waits
}

// hears takes what a reader says, and returns true if it has read everything.
func (w *world) hears(way string, in *instance, words []string) (done bool) {
	switch words[0] {
	case "waits":
	case "done":
		var reads int64
		fmt.Sscan(words[1], &reads)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.reads[way] += reads
		w.passes[way]++
		return true
	case "slow":
		r := slowRead{what: fmt.Sprintf("reader %s of layer %d, %s", way, in.seed, strings.Join(words[4:], " at "))}
		if _, err := fmt.Sscan(strings.Join(words[1:4], " "), &r.began, &r.ended, &r.failed); err != nil {
			w.t.Error(err)
		}
		if r.failed && w.o.registry == nil && !w.failing.Load() {
			w.wrong(r.what + ": I/O error")
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.slow[in.seed] = append(w.slow[in.seed], r)
	default:
		w.wrong(fmt.Sprintf("reader %s of layer %d: %s", way, in.seed, strings.Join(words, " ")))
	}
	return false
}

// wrongReads is how many reads that went wrong are told of.
const wrongReads = 20

func (w *world) wrong(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wrongs++; w.wrongs <= wrongReads {
		w.t.Error(what)
	}
}

// stacks are those of the threads of a process and of its children, in the kernel.
func stacks(pid int) string {
	var text strings.Builder
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, task := range tasks {
		stack, _ := os.ReadFile(filepath.Join(task, "stack"))
		fmt.Fprintf(&text, "%s\n%s", task, stack)
		children, _ := os.ReadFile(filepath.Join(task, "children"))
		for _, child := range strings.Fields(string(children)) {
			stack, _ := os.ReadFile(filepath.Join("/proc", child, "stack"))
			fmt.Fprintf(&text, "child %s\n%s", child, stack)
		}
	}
	return text.String()
}

// slowRead is a read that took long or failed.
type slowRead struct {
	what         string
	began, ended int64 // in milliseconds
	failed       bool
}

// checkFailures fails unless for each read that failed the deadline was over: its own, or, as the engine has little patience then, that of
// another read of the layer that was waiting or had just waited in vain.
func (w *world) checkFailures() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	deadline := w.o.deadline.Milliseconds()
	for _, all := range w.slow {
		for _, r := range all {
			if !r.failed {
				continue
			}
			w.expired++
			if !slices.ContainsFunc(all, func(o slowRead) bool { return o.began+deadline <= r.ended && r.began <= o.ended+deadline/2 }) {
				w.t.Errorf("%s: I/O error after %d ms, and nobody has waited for the deadline", r.what, r.ended-r.began)
			}
		}
	}
	clear(w.slow)
}
