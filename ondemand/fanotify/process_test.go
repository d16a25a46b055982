package fanotify

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	roles["serve"] = func() error { return answer(false) }
	roles["deny"] = func() error { return answer(true) }
	roles["read"] = readAll
}

// process is another process of the test binary. It ends when its standard input is closed.
type process struct {
	t     testing.TB
	cmd   *exec.Cmd
	stdin io.Closer
	lines *bufio.Scanner
}

func start(t testing.TB, role, arg string, files ...*os.File) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), roleEnv+"="+role, "FANOTIFY_TEST_ARG="+arg)
	p.cmd.ExtraFiles = files
	p.cmd.Stderr = os.Stderr
	in, err := p.cmd.StdinPipe()
	must(t, err)
	out, err := p.cmd.StdoutPipe()
	must(t, err)
	must(t, p.cmd.Start())
	p.stdin, p.lines = in, bufio.NewScanner(out)
	t.Cleanup(func() { p.cmd.Process.Kill(); p.cmd.Wait() })
	return p
}

// line returns what the process says next, or "" if it has ended.
func (p *process) line() string {
	if !p.lines.Scan() {
		return ""
	}
	return p.lines.Text()
}

func (p *process) kill() {
	p.t.Helper()
	must(p.t, p.cmd.Process.Kill())
	var exit *exec.ExitError
	if err := p.cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != -1 {
		p.t.Fatalf("the process ended by itself: %v", err)
	}
}

// daemon starts a process that answers for a group: it serves, or denies.
func (l *layer) daemon(t testing.TB, role string, g *Group, fillTime time.Duration) *process {
	t.Helper()
	group, journal := g.Files()
	return start(t, role, fillTime.String(), group, journal, l.data, l.source)
}

// answer is such a process. It says "filled" when it has filled, or denied, for the first time.
func answer(deny bool) error {
	fillTime, err := time.ParseDuration(os.Getenv("FANOTIFY_TEST_ARG"))
	if err != nil {
		return err
	}
	file := func(fd uintptr, name string) *os.File { return os.NewFile(fd, name) }
	l := &layer{data: file(5, "data"), source: file(6, "source")}
	g, err := Adopt(file(3, "group"), file(4, "journal"), l.data)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	if deny {
		go func() {
			for g.Stats().Failed == 0 {
				time.Sleep(time.Millisecond)
			}
			fmt.Println("filled")
		}()
		_, err := g.Deny(ctx)
		return errors.Join(err, g.Close())
	}
	f := l.filler()
	var once sync.Once
	f.before = func(ctx context.Context, _, _ int64) error {
		once.Do(func() { fmt.Println("filled") })
		if fillTime > 0 {
			time.Sleep(rand.N(fillTime))
		}
		return ctx.Err()
	}
	return errors.Join(g.Serve(ctx, f), g.Close())
}

// reader starts a process that reads every page once, in any order, with several threads. With denied, I/O errors are read again.
func (l *layer) reader(t testing.TB, threads int, denied bool) *process {
	t.Helper()
	return start(t, "read", fmt.Sprintf("%s %d %v", l.path, threads, denied))
}

// readAll is such a process. It says how many pages it has read and how many reads failed with an I/O error.
func readAll() error {
	var path string
	var threads int
	var denied bool
	if _, err := fmt.Sscan(os.Getenv("FANOTIFY_TEST_ARG"), &path, &threads, &denied); err != nil {
		return err
	}
	l := &layer{path: path}
	f, err := os.Open(l.path)
	if err != nil {
		return err
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	pages := rand.Perm(int(info.Size() / pageBytes))
	var next, failed atomic.Int64
	errs := make(chan error, threads)
	for range threads {
		go func() {
			runtime.LockOSThread()
			for i := next.Add(1) - 1; i < int64(len(pages)); i = next.Add(1) - 1 {
				err := readPage(int(f.Fd()), int64(pages[i]))
				for denied && errors.Is(err, unix.EIO) {
					failed.Add(1)
					time.Sleep(time.Millisecond)
					err = readPage(int(f.Fd()), int64(pages[i]))
				}
				if err != nil {
					errs <- fmt.Errorf("page %d: %w", pages[i], err)
					return
				}
			}
			errs <- nil
		}()
	}
	for range threads {
		if err := <-errs; err != nil {
			return err
		}
	}
	fmt.Println("read", len(pages), failed.Load())
	return nil
}

// finished waits until a reader has read everything, and returns how many of its reads failed.
func (p *process) finished(l *layer) (failed int) {
	p.t.Helper()
	var pages int64
	line := p.line()
	if _, err := fmt.Sscanf(line, "read %d %d", &pages, &failed); err != nil || pages != l.size/pageBytes {
		p.t.Fatalf("the reader says %q: %v", strings.TrimSpace(line), err)
	}
	return failed
}

// leftInJournal is how many events a dead process has left.
func leftInJournal(t testing.TB, g *Group) (n int) {
	t.Helper()
	for i := range slots {
		_, ok, err := parseSlot(g.journal.page, i, g.size)
		must(t, err)
		if ok {
			n++
		}
	}
	return n
}
