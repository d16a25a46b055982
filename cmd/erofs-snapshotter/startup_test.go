package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/startup"
)

// TestReadStartup: a process that is not root reads what only root can read, and says how much that was.
func TestReadStartup(t *testing.T) {
	testenv.Need(t, testenv.Root)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "private"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "private", "program"), []byte("data"), 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	p := startup.Program{Args: []string{"program"}, Env: []string{"PATH=/private"}}
	report, err := readStartup(t.Context(), root, p)
	if want := (startup.Report{Files: 1, Bytes: 4}); err != nil || report != want {
		t.Errorf("%+v, %v, want %+v", report, err, want)
	}
	if _, err := readStartup(t.Context(), root, startup.Program{Args: []string{"nosuch"}}); err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("a program that is not there: %v", err)
	}
	if d, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); d != 1 {
		t.Errorf("this process leaves no core dumps any more: %d, %v", d, err)
	}
}

// TestReadStartupEnds: the process ends when it shall, also while the kernel holds its read.
func TestReadStartupEnds(t *testing.T) {
	testenv.Need(t, testenv.Root)
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("data"), 0o700); err != nil {
		t.Fatal(err)
	}
	// A listener that never answers.
	group, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY)
	if err == nil {
		defer unix.Close(group)
		err = unix.FanotifyMark(group, unix.FAN_MARK_ADD, unix.FAN_ACCESS_PERM, unix.AT_FDCWD, program)
	}
	testenv.Need(t, testenv.Feature{Name: "fanotify", Missing: func() error { return err }})
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	over := errors.New("over")
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, over)
	defer cancel()
	first := make(chan bool, 1)
	go func() {
		defer close(first)
		for ctx.Err() == nil {
			children, _ := filepath.Glob("/proc/self/task/*/children")
			for _, path := range children {
				b, _ := os.ReadFile(path)
				for _, pid := range strings.Fields(string(b)) {
					score, _ := os.ReadFile("/proc/" + pid + "/oom_score_adj")
					if strings.TrimSpace(string(score)) == "1000" {
						first <- true
						return
					}
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	began := time.Now()
	_, err = readStartup(ctx, root, startup.Program{Args: []string{"/program"}})
	if took := time.Since(began); !errors.Is(err, over) || took < time.Second || took > 5*time.Second {
		t.Errorf("%v after %v", err, took)
	}
	if !<-first {
		t.Error("it was not the first to be killed when memory is short")
	}
}
