package fanotify

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func init() { roles["starve"] = starve }

func TestRaiseLimits(t *testing.T) {
	testenv.Need(t, testenv.Root, preContent)
	before, err := readNumber(groupsFile)
	must(t, err)
	for _, groups := range []int{many, 1} {
		must(t, RaiseLimits(groups))
		if now, err := readNumber(groupsFile); err != nil || now < before || now < groups+spareGroups {
			t.Errorf("%d groups: %d allowed, before %d, %v", groups, now, before, err)
		}
	}
	var files unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &files))
	if files.Cur != files.Max {
		t.Errorf("limit of open files: %+v", files)
	}
	most, err := readNumber(nrOpenFile)
	must(t, err)
	if err := raiseFiles(uint64(most) + 1); err == nil || !strings.Contains(err.Error(), "fs.nr_open") {
		t.Errorf("more files than the system allows: %v", err)
	}
	var now unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &now))
	if now != files {
		t.Errorf("limit of open files: %+v, before %+v", now, files)
	}
}

// many is a number of groups for which no thread each, and no limit of 128, would do.
const many = 500

func TestManyGroups(t *testing.T) {
	testenv.Need(t, testenv.Root, preContent)
	must(t, RaiseLimits(many))
	dir, before := t.TempDir(), threads(t)
	var groups []*Group
	for i := range many {
		data, err := os.OpenFile(filepath.Join(dir, fmt.Sprint(i)), os.O_RDWR|os.O_CREATE, 0o600)
		must(t, err)
		t.Cleanup(func() { data.Close() })
		must(t, data.Truncate(pageBytes))
		g, err := New(data)
		must(t, err)
		groups = append(groups, g)
		serve(t, g, onePage{data})
	}
	for i := 0; i < many; i += 7 {
		f, err := os.Open(filepath.Join(dir, fmt.Sprint(i)))
		must(t, err)
		if err := readOf(f, 0).wait(t); err != nil {
			t.Errorf("group %d: %v", i, err)
		}
	}
	if n := threads(t) - before; n > many/10 {
		t.Errorf("%d more threads for %d groups", n, many)
	}
	closed := make(chan error)
	for _, g := range groups {
		go func() { closed <- g.Close() }()
	}
	for range groups {
		if err := <-closed; err != nil {
			t.Error(err)
		}
	}
}

func threads(t testing.TB) (n int) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	must(t, err)
	return len(tasks)
}

// A process that has no descriptors left for events: readers get I/O errors and do not hang, and all is well when there are some again.
func TestNoDescriptors(t *testing.T) {
	l, g, f := watched(t, 1<<20)
	held := []reading{l.read(t, 1), l.read(t, 2), l.read(t, 3)}
	eventually(t, "events in the queue", func() bool { return queued(t, g) > 0 })
	group, journal := g.Files()
	daemon := start(t, "starve", "", group, journal, l.data)
	if got := daemon.line(); got != "starving" {
		t.Fatalf("the process says %q", got)
	}
	for i, r := range append(held, l.read(t, 4)) {
		if err := r.wait(t); err == nil || !strings.Contains(err.Error(), unix.EIO.Error()) {
			t.Errorf("read %d: got %v, want EIO", i, err)
		}
	}
	must(t, daemon.stdin.Close())
	if got := daemon.line(); got != "refused" {
		t.Errorf("the process says %q", got)
	}
	must(t, daemon.cmd.Wait())
	serve(t, g, f)
	must(t, l.read(t, 1).wait(t))
}

// starve is a process that serves a group and cannot open anything. It says in the end whether the kernel has refused events.
func starve() error {
	file := func(fd uintptr, name string) *os.File { return os.NewFile(fd, name) }
	data := file(5, "data")
	g, err := Adopt(file(3, "group"), file(4, "journal"), data)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	served := make(chan error)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Max: 1000}); err != nil {
		return err
	}
	go func() { served <- g.Serve(ctx, onePage{data}) }()
	fmt.Println("starving")
	io.Copy(io.Discard, os.Stdin)
	cancel()
	if err := <-served; err != nil {
		return err
	}
	if st := g.Stats(); st.Refused > 0 && st.Events == 0 {
		fmt.Println("refused")
	}
	return nil
}

// onePage fills the first page of a file.
type onePage struct{ data *os.File }

func (onePage) Ready(int64, int64) bool { return false }

func (p onePage) Fill(_ context.Context, off, _ int64) error {
	b := make([]byte, pageBytes)
	contentAt(b, off)
	_, err := p.data.WriteAt(b, off)
	return err
}
