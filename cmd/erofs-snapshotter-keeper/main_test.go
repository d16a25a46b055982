package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// Environment variables that make the test binary behave as another program.
const (
	asProgram = "KEEPER_TEST_AS_PROGRAM"
	asStarter = "KEEPER_TEST_AS_STARTER" // starts a keeper at the address and ends
)

// patience bounds every wait. It is long because a failure may be slow, not because success is.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	if address := os.Getenv(asStarter); address != "" {
		must(nil, os.Unsetenv(asStarter))
		must(nil, os.Setenv(asProgram, "1"))
		if err := keeper.Start(context.Background(), address, os.Args[0], os.Stderr, "--patience", "1m"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(testenv.Main(m))
}

// must ends the test, or the process that has none.
func must(t testing.TB, err error) {
	if err == nil {
		return
	}
	if t == nil {
		panic(err)
	}
	t.Helper()
	t.Fatal(err)
}

// address returns where a keeper may listen, and ends the keeper that does in the end: nothing may be held any more.
func address(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "keeper-test-")
	must(t, err)
	at := filepath.Join(dir, "run", "k.sock")
	t.Cleanup(func() {
		if r, err := keeper.Status(context.Background(), at); err == nil {
			must(t, unix.Kill(r.PID, unix.SIGTERM))
			for waited := time.Now(); alive(r.PID); time.Sleep(2 * time.Millisecond) {
				if time.Since(waited) > patience {
					t.Errorf("the keeper, process %d, does not end", r.PID)
					break
				}
			}
		}
		must(t, os.RemoveAll(dir))
	})
	return at
}

// alive tells whether a process runs that is no child of this one. Where nobody waits for orphans, a dead one stays as a zombie.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(stat), ") ")
	return err == nil && !strings.HasPrefix(after, "Z")
}

// program runs this binary as erofs-snapshotter-keeper. What it leaves in the background may go on writing.
func program(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	must(t, err)
	defer out.Close()
	var message bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &message
	_ = cmd.Run() // its status tells
	b, err := os.ReadFile(out.Name())
	must(t, err)
	return string(b), message.String(), cmd.ProcessState.ExitCode()
}

func TestUsage(t *testing.T) {
	for _, test := range []struct {
		args   []string
		status int
		stdout string
		stderr string
	}{
		{[]string{"--help"}, 0, "usage: erofs-snapshotter-keeper", ""},
		{[]string{"--version"}, 0, "erofs-snapshotter-keeper devel", ""},
		{[]string{"--patience", "0s"}, 2, "", "--patience"},
		{[]string{"--patience", "x"}, 2, "", "patience"},
		{[]string{"--log-format", "xml"}, 2, "", "text or json"},
		{[]string{"--nonsense"}, 2, "", "nonsense"},
		{[]string{"argument"}, 2, "", `got "argument"`},
		{[]string{"--address", "/proc/none/k.sock"}, 1, "", "/proc/none"},
		{[]string{"--address", "/proc/none/k.sock", "--detach"}, 1, "", "/proc/none"},
	} {
		stdout, stderr, status := program(t, test.args...)
		if status != test.status || !strings.Contains(stdout, test.stdout) || !strings.Contains(stderr, test.stderr) {
			t.Errorf("%v: status %d\n%s\n%s", test.args, status, stdout, stderr)
		}
	}
	if all, _, _ := program(t, "--help"); !strings.Contains(all, keeper.DefaultAddress) || strings.Contains(all, "%!") {
		t.Error(all)
	}
}

// The keeper outlives whoever has started it.
func TestStart(t *testing.T) {
	at := address(t)
	starter := exec.Command(os.Args[0])
	starter.Env = append(os.Environ(), asStarter+"="+at)
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	must(t, err)
	defer log.Close()
	starter.Stderr = log
	must(t, starter.Run())
	r, err := keeper.Status(t.Context(), at)
	must(t, err)
	if r.Patience != time.Minute {
		t.Errorf("its patience is %s", r.Patience)
	}
	if sid, err := unix.Getsid(r.PID); err != nil || sid != r.PID {
		t.Errorf("session %d of process %d, %v", sid, r.PID, err)
	}
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", r.PID)); err != nil || cwd != "/" {
		t.Errorf("works in %q, %v", cwd, err)
	}
	t.Setenv(asProgram, "1")
	must(t, keeper.Start(t.Context(), at, "/none", nil)) // one listens: the program is not even looked at
	if again, err := keeper.Status(t.Context(), at); err != nil || again.PID != r.PID {
		t.Errorf("%+v, %v", again, err)
	}
	b, err := io.ReadAll(io.NewSectionReader(log, 0, 1<<20))
	if err != nil || !strings.Contains(string(b), "keeping") {
		t.Errorf("the keeper logs elsewhere: %s", b)
	}
}

func TestStartAtOnce(t *testing.T) {
	t.Setenv(asProgram, "1")
	at := address(t)
	var starts sync.WaitGroup
	for range 5 {
		starts.Go(func() {
			if err := keeper.Start(t.Context(), at, os.Args[0], nil); err != nil {
				t.Error(err)
			}
		})
	}
	starts.Wait()
}

func TestStartFails(t *testing.T) {
	t.Setenv(asProgram, "1")
	err := keeper.Start(t.Context(), "/proc/none/k.sock", os.Args[0], nil)
	if err == nil || !strings.Contains(err.Error(), "/proc/none") {
		t.Errorf("got %v", err)
	}
	if err := keeper.Start(t.Context(), address(t), "/none", nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// An upgrade of a keeper that systemd does not run.
func TestReplaceDetached(t *testing.T) {
	at := address(t)
	for range 2 {
		if _, stderr, status := program(t, "--address", at, "--detach", "--replace", "--patience", "1m", "--log-format", "json"); status != 0 {
			t.Fatal(stderr)
		}
	}
	r, err := keeper.Status(t.Context(), at)
	must(t, err)
	if r.Patience != time.Minute {
		t.Errorf("%+v", r)
	}
}

// blocked is a reader of the log that does not read.
type blocked struct{ until chan struct{} }

func (b blocked) Write(p []byte) (int, error) {
	<-b.until
	return len(p), nil
}

func TestLogNeverWaits(t *testing.T) {
	w := blocked{make(chan struct{})}
	l := newLossyWriter(w)
	for range 10 * queuedLines {
		if _, err := l.Write([]byte("line\n")); err != nil {
			t.Fatal(err)
		}
	}
	l.drain(time.Millisecond)
	close(w.until)

	var out bytes.Buffer
	l = newLossyWriter(&out)
	line := []byte("a line\n")
	_, _ = l.Write(line)
	copy(line, "another") // who writes may use it again
	l.drain(patience)
	if out.String() != "a line\n" {
		t.Errorf("got %q", out.String())
	}
}
