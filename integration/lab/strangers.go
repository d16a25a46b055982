package lab

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// What follows is about processes that are not children of the lab's process: shims, keepers, and everything of an abandoned lab.

// endShims ends the shims that outlived their containers' deletion, and what runs below them.
func endShims(dir string) { endProcesses(dir, "containerd-shim-runc-v2") }

// endProcesses kills the processes whose program has one of the names and whose arguments lie in dir, with all their descendants, and
// waits until they are gone.
func endProcesses(dir string, programs ...string) {
	var doomed []int
	for pid := range processesIn(dir, programs...) {
		doomed = append(doomed, descendants(pid)...)
		doomed = append(doomed, pid)
	}
	_ = killAll(doomed) // what is still there holds on to something, which the caller's unmounting finds
}

// goneTimeout is longer than killTimeout: a keeper of 1,000 layers takes 10 s to end, for the kernel takes as many ms to close a group.
var goneTimeout = time.Minute * testenv.Slow

// killAll sends SIGKILL to all of the processes before it waits for the first to end.
func killAll(pids []int) error {
	handles := map[int]int{}
	var errs []error
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err == nil {
			handles[pid] = fd
			defer unix.Close(fd)
			err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("kill process %d: %w", pid, err))
		}
	}
	deadline := time.Now().Add(goneTimeout)
	for pid, fd := range handles {
		for !exited(fd) {
			if time.Now().After(deadline) {
				errs = append(errs, fmt.Errorf("process %d is still there %s after SIGKILL", pid, goneTimeout))
				break
			}
		}
	}
	return errors.Join(errs...)
}

// exited waits a moment for the end of the process of a pidfd. One that is not waited for by its parent has ended all the same.
func exited(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(pollInterval.Milliseconds()))
	return n > 0 && err == nil
}

// processesIn returns the command lines of the processes whose program has one of the names and whose arguments lie in dir.
func processesIn(dir string, programs ...string) map[int][]string {
	all := processes()
	maps.DeleteFunc(all, func(_ int, args []string) bool {
		in := slices.ContainsFunc(args[1:], func(arg string) bool { return strings.HasPrefix(arg, dir+"/") })
		return !in || !slices.Contains(programs, filepath.Base(args[0]))
	})
	return all
}

// processes returns the command line of every process.
func processes() map[int][]string {
	all := map[int][]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			continue
		}
		if b, err := os.ReadFile(d + "/cmdline"); err == nil && len(b) > 0 {
			all[pid] = strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		}
	}
	return all
}

// descendants returns the children of a process and theirs, the innermost first.
func descendants(pid int) []int {
	var all []int
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil {
			continue
		}
		for field := range strings.FieldsSeq(string(b)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(append(all, descendants(child)...), child)
			}
		}
	}
	return all
}
