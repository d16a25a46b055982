package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/fanotify"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

const (
	blobs = 1000
	// maxKiB is what the keeper may take with that many blobs, also while it answers for all of them.
	maxKiB = 15 << 10
)

var preContent = testenv.Feature{Name: "fanotify", Missing: func() error { return fanotify.Probe(os.TempDir()) }}

// TestMemory holds a thousand blobs with the program as it is shipped: when they are served, and when nobody is there to serve them.
func TestMemory(t *testing.T) {
	testenv.Need(t, testenv.Root, preContent, testenv.Tool("go"))
	program := filepath.Join(t.TempDir(), "erofs-snapshotter-keeper")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	must(t, fanotify.RaiseLimits(blobs))
	at := address(t)
	cmd := exec.Command(program, "--address", at, "--detach", "--patience", "300ms")
	cmd.Stderr = os.Stderr
	must(t, cmd.Run())

	c, _, _, err := keeper.Dial(t.Context(), at)
	must(t, err)
	dir := t.TempDir()
	for i := range blobs {
		holdGroup(t, c, filepath.Join(dir, fmt.Sprint(i)), fmt.Sprintf("%064x.%d", i, i))
	}
	holdDevice(t, c)
	check := func(what string) {
		t.Helper()
		r, err := keeper.Status(t.Context(), at)
		must(t, err)
		rss := memory(t, r.PID, "VmRSS")
		for waited := time.Now(); rss > maxKiB; rss = memory(t, r.PID, "VmRSS") { // what is not needed any more is given back soon
			if time.Since(waited) > patience {
				t.Fatalf("%s: VmRSS %d KiB, want at most %d", what, rss, maxKiB)
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Logf("%s: VmRSS %d KiB, RssAnon %d KiB, VmHWM %d KiB", what, rss, memory(t, r.PID, "RssAnon"), memory(t, r.PID, "VmHWM"))
	}
	check("served")
	must(t, c.Release(t.Context()))
	waitState(t, at, keeper.Denying)
	if r, err := keeper.Status(t.Context(), at); err != nil || r.Device != keeper.Denying {
		t.Errorf("%+v, %v", r, err)
	}
	check("denying")
	refuse(t, dir, at)
	check("having denied")

	c, held, _, err := keeper.Dial(context.WithoutCancel(t.Context()), at)
	must(t, err)
	check("served again")
	for _, h := range held {
		must(t, h.Close())
		must(t, c.Drop(t.Context(), h.Name))
	}
	must(t, c.DropDevice(t.Context()))
	must(t, c.Release(t.Context()))
	check("empty")
}

// holdGroup has the keeper alone hold a group that watches a new file.
func holdGroup(t *testing.T, c *keeper.Client, path, name string) {
	t.Helper()
	data, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer data.Close()
	must(t, data.Truncate(1<<20))
	g, err := fanotify.New(data)
	must(t, err)
	group, journal := g.Files()
	note := []byte(strings.Repeat("n", 200))
	must(t, c.Hold(t.Context(), keeper.Held{Name: name, Note: note, Group: group, Data: data, Journal: journal}))
	must(t, g.Close())
}

// holdDevice has the keeper alone hold what stands for the device of the kernel's cache, of which nothing is asked.
func holdDevice(t *testing.T, c *keeper.Client) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Close(fds[1])) })
	device := os.NewFile(uintptr(fds[0]), "device")
	must(t, c.HoldDevice(t.Context(), keeper.HeldDevice{Note: []byte(strings.Repeat("n", 200)), File: device}))
	must(t, device.Close())
}

// refuse reads from each file, which fails.
func refuse(t *testing.T, dir, at string) {
	t.Helper()
	for i := range blobs {
		f, err := os.Open(filepath.Join(dir, fmt.Sprint(i)))
		must(t, err)
		if _, err := f.Read(make([]byte, 4096)); err == nil {
			t.Fatal("a hole was read")
		}
		must(t, f.Close())
	}
	if r, err := keeper.Status(t.Context(), at); err != nil || r.Denied < blobs {
		t.Errorf("%+v, %v", r, err)
	}
}

func waitState(t *testing.T, at string, want keeper.State) {
	t.Helper()
	for waited := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		r, err := keeper.Status(t.Context(), at)
		must(t, err)
		if r.State == want {
			return
		}
		if time.Since(waited) > patience {
			t.Fatalf("waited in vain for %s: %+v", want, r)
		}
	}
}

// memory returns a line of a process's status, in KiB.
func memory(t *testing.T, pid int, field string) (kib int) {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if after, found := strings.CutPrefix(lines.Text(), field+":"); found {
			_, err := fmt.Sscan(after, &kib)
			must(t, err)
			return kib
		}
	}
	t.Fatalf("no %s in the status of process %d", field, pid)
	return 0
}
