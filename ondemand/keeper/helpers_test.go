package keeper

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// childEnv has the test binary be another process: "role address argument...".
const childEnv = "KEEPER_TEST_CHILD"

// patient bounds every wait. It is long because a failure may be slow, not because success is.
const patient = 60 * time.Second

func TestMain(m *testing.M) {
	if role := os.Getenv(childEnv); role != "" {
		if err := runChild(strings.Fields(role)); err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(testenv.Main(m))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patient); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func timeout(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patient)
	t.Cleanup(cancel)
	return ctx
}

// address returns where a keeper may listen. The paths of the test's own directories may be too long for a socket.
func address(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "keeper-test-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return filepath.Join(dir, "run", "k.sock")
}

// fakeRefusers stand for fanotify groups that the keeper answers.
type fakeRefusers struct {
	mu     sync.Mutex
	active map[string]bool
	failed int // how often adopting is to fail
}

func (f *fakeRefusers) adopt(name string, _ entry) (refuser, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed > 0 {
		f.failed--
		return nil, errors.New("made by a test")
	}
	return &fakeRefuser{f, name}, nil
}

func (f *fakeRefusers) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.active)
}

type fakeRefuser struct {
	all  *fakeRefusers
	name string
}

// DenyWaiting denies three events, one of them when it is about to end. It never returns before, as if more and more readers came.
func (r *fakeRefuser) DenyWaiting(ctx context.Context) (int, error) {
	r.all.mu.Lock()
	r.all.active[r.name] = true
	r.all.mu.Unlock()
	<-ctx.Done()
	time.Sleep(20 * time.Millisecond) // who does not wait for this end is seen
	r.all.mu.Lock()
	delete(r.all.active, r.name)
	r.all.mu.Unlock()
	return 3, nil
}

func (r *fakeRefuser) Denied() int64 { return 2 }
func (r *fakeRefuser) Close() error  { return nil }

// keep runs a keeper in this process until the test ends, whatever it holds then.
func keep(t testing.TB, o Options) (*server, *fakeRefusers) {
	t.Helper()
	fake := &fakeRefusers{active: map[string]bool{}}
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	s, err := start(t.Context(), o.withDefaults())
	must(t, err)
	s.adopt = fake.adopt
	s.adoptDevice = func(int) (refuser, error) { return fake.adopt("device", entry{}) }
	s.grace = 50 * time.Millisecond
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	running.Go(func() { s.run(ctx) })
	t.Cleanup(func() {
		s.turn.Lock()
		if !s.isReplaced() {
			close(s.replaced)
		}
		s.turn.Unlock()
		running.Wait()
		cancel()
	})
	return s, fake
}

// standIn is something to be held: what its three files are does not matter to a keeper that does not answer.
func standIn(t testing.TB, name string) Held {
	t.Helper()
	file := func(kind string) *os.File {
		fd, err := unix.MemfdCreate(kind, unix.MFD_CLOEXEC)
		must(t, err)
		f := os.NewFile(uintptr(fd), kind)
		_, err = f.WriteString(kind + " of " + name)
		must(t, err)
		return f
	}
	h := Held{Name: name, Note: []byte("note of " + name), Group: file("group"), Data: file("data"), Journal: file("journal")}
	t.Cleanup(func() { h.Close() })
	return h
}

// checkStandIn tells whether h is what standIn made for its name, in another process perhaps.
func checkStandIn(h Held) error {
	for kind, f := range map[string]*os.File{"group": h.Group, "data": h.Data, "journal": h.Journal} {
		b, err := io.ReadAll(io.NewSectionReader(f, 0, 1000))
		if err != nil || string(b) != kind+" of "+h.Name {
			return fmt.Errorf("%s of %s: got %q, %v", kind, h.Name, b, err)
		}
	}
	if string(h.Note) != "note of "+h.Name {
		return fmt.Errorf("note of %s: got %q", h.Name, h.Note)
	}
	return nil
}

// dialOf dials, checks what is held, and closes it.
func dialOf(t testing.TB, address string, want ...string) *Client {
	t.Helper()
	c, held, secret, err := Dial(timeout(t), address)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	if secret != nil {
		secret.Close()
	}
	names := map[string]bool{}
	for _, h := range held {
		names[h.Name] = true
		if err := checkStandIn(h); err != nil {
			t.Error(err)
		}
		h.Close()
	}
	for _, name := range want {
		if !names[name] {
			t.Errorf("%s is not held", name)
		}
	}
	if len(names) != len(want) {
		t.Errorf("held: %v, want %v", names, want)
	}
	return c
}

func status(t testing.TB, address string) Report {
	t.Helper()
	r, err := Status(timeout(t), address)
	must(t, err)
	return r
}

// child is another process.
type child struct {
	t    testing.TB
	cmd  *exec.Cmd
	said *bufio.Scanner
	over chan struct{}
	err  error // of its end
}

// spawn starts the test binary in a role; see runChild.
func spawn(t testing.TB, role ...string) *child {
	t.Helper()
	c := &child{t: t, cmd: exec.Command(os.Args[0]), over: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), childEnv+"="+strings.Join(role, " "))
	c.cmd.Stderr = t.Output()
	in, err := c.cmd.StdinPipe() // children that only wait end with it
	must(t, err)
	out, w, err := os.Pipe()
	must(t, err)
	c.cmd.Stdout = w
	must(t, c.cmd.Start())
	w.Close()
	c.said = bufio.NewScanner(out)
	go func() {
		defer close(c.over)
		c.err = c.cmd.Wait()
	}()
	t.Cleanup(func() {
		in.Close()
		c.kill()
		out.Close()
	})
	return c
}

// expect waits until the child says something.
func (c *child) expect(want string) {
	c.t.Helper()
	if !c.said.Scan() || c.said.Text() != want {
		c.t.Fatalf("the child said %q, want %q", c.said.Text(), want)
	}
}

func (c *child) kill() {
	_ = c.cmd.Process.Kill() // it may have ended
	<-c.over
}

// wait waits for the child's end.
func (c *child) wait() {
	c.t.Helper()
	select {
	case <-c.over:
	case <-time.After(patient):
		c.t.Fatal("the child does not end")
	}
}

func (c *child) lives() bool {
	select {
	case <-c.over:
		return false
	default:
		return true
	}
}

func (c *child) wasKilled() bool {
	status, ok := c.cmd.ProcessState.Sys().(interface{ Signaled() bool })
	return ok && status.Signaled()
}
