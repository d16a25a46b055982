package cachefiles

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is a device and its other side: each message, and each command, is a packet.
func pair(t *testing.T) (fd, other int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fds[1], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[1]) })
	return fds[0], fds[1]
}

func command(t *testing.T, fd int) string {
	t.Helper()
	var b [commandMost]byte
	n, err := unix.Read(fd, b[:])
	if err != nil {
		t.Fatalf("wait for a command: %v", err)
	}
	return string(b[:n])
}

func say(t *testing.T, fd int, m message) {
	t.Helper()
	if _, err := unix.Write(fd, m.encode()); err != nil {
		t.Fatal(err)
	}
}

// The port of the running kernel waits, reads and writes, and its Device ends when it is closed.
func TestDevice(t *testing.T) {
	before := openFiles(t)
	fd, other := pair(t)
	c := newContent(10000)
	o := &objects{have: map[string]*content{"one": c}}
	d, err := Adopt(os.NewFile(uintptr(fd), "device"), Options{Lookup: o.lookup})
	if err != nil {
		t.Fatal(err)
	}
	if got := command(t, other); got != "restore" {
		t.Errorf("command %q", got)
	}
	ended := make(chan error, 1)
	go func() { ended <- d.Serve(context.Background()) }()
	time.Sleep(10 * time.Millisecond) // until it waits

	object, err := unix.MemfdCreate("object", 0)
	if err != nil {
		t.Fatal(err)
	}
	say(t, other, message{id: 5, opcode: opOpen, object: 1, volume: "v", cookie: "one", fd: object})
	if got := command(t, other); got != "copen 5,10000" {
		t.Errorf("command %q", got)
	}
	if flags, err := unix.FcntlInt(uintptr(object), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
	say(t, other, message{id: 6, opcode: opRead, object: 1, off: 4096, n: 1 << 17})
	eventually(t, "the READ has an answer", func() bool { return d.Stats().Unanswered == 1 }) // a memfd knows no ioctl
	var b [16384]byte
	if n, err := unix.Pread(object, b[:], 0); n != 12288 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	c.check(t, b[4096:12288], 4096)

	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := openFiles(t); n != before+1 { // the other side
		t.Errorf("%d open files, before %d", n, before)
	}
}

// A kick has the device read though the kernel says nothing, and does not end the wait.
func TestDeviceKicked(t *testing.T) {
	fd, _ := pair(t)
	p, err := newDevice(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer p.file.Close()
	ctx, cancel := context.WithCancel(t.Context())
	drained := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- p.wait(ctx, func() {
			select {
			case drained <- struct{}{}:
			case <-ctx.Done():
			}
		})
	}()
	<-drained
	for range 100 {
		p.kick()
		<-drained
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestDeviceServedTwice(t *testing.T) {
	fd, other := pair(t)
	p, err := newDevice(fd)
	if err != nil {
		t.Fatal(err)
	}
	d := newOn(p, Options{Lookup: (&objects{}).lookup})
	defer d.Close()
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- d.Serve(ctx) }()
		say(t, other, message{id: 1, opcode: opRead, object: 9})
		for command(t, other) == "restore" {
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestAdoptWhatIsNoDevice(t *testing.T) {
	before := openFiles(t)
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	if d, err := Adopt(f, Options{}); err == nil || d != nil {
		t.Errorf("adopted a file: %v", err)
	}
	if n := openFiles(t); n != before {
		t.Errorf("%d open files, before %d", n, before)
	}
}

func TestBind(t *testing.T) {
	k := newKernel(t)
	d := newOn(k, Options{Dir: "/cache", Tag: "test", Limits: Limits{Run: 20, Cull: 10, Stop: 5}})
	if err := d.bind(); err != nil {
		t.Fatal(err)
	}
	if k.dir != "/cache" || k.tag != "test" || k.blocks != d.o.Limits || k.files != d.o.Limits || !k.ready ||
		k.commands[len(k.commands)-1] != "bind ondemand" {
		t.Errorf("%q, %q, %+v, %+v: %q", k.dir, k.tag, k.blocks, k.files, k.commands)
	}
	if err := d.bind(); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), `command "bind ondemand": cache directory /cache: used`) {
		t.Errorf("bound twice: %v", err)
	}
	for errno, want := range map[unix.Errno]error{
		unix.EINVAL: ErrNotSupported, unix.EOPNOTSUPP: ErrUnfit, unix.EROFS: ErrUnfit, unix.ENOSPC: unix.ENOSPC, unix.ENOMEM: unix.ENOMEM,
	} {
		k := newKernel(t)
		k.onWrite = func(c string) error {
			if c == "bind ondemand" {
				return errno
			}
			return nil
		}
		if err := newOn(k, Options{Dir: "/cache"}).bind(); !errors.Is(err, want) || !errors.Is(err, errno) {
			t.Errorf("%v: %v", errno, err)
		}
	}
}

func TestExplainOpen(t *testing.T) {
	for errno, want := range map[unix.Errno]error{
		unix.EBUSY: ErrBusy, unix.ENOENT: ErrNotSupported, unix.ENXIO: ErrNotSupported, unix.EPERM: unix.EPERM, unix.EMFILE: unix.EMFILE,
	} {
		if err := explainOpen(errno); !errors.Is(err, want) || !errors.Is(err, errno) {
			t.Errorf("%v: %v", errno, err)
		}
	}
}

func TestOpenWithoutDevice(t *testing.T) {
	before := openFiles(t)
	dir := t.TempDir()
	for _, o := range []Options{{Dir: filepath.Join(dir, "none")}, {Dir: devicePath}} {
		if d, err := Open(o); !errors.Is(err, ErrUnfit) || d != nil {
			t.Errorf("%s: %v", o.Dir, err)
		}
	}
	if _, err := os.Stat(devicePath); err != nil { // where it is, tests in virtual machines open it
		if _, err := Open(Options{Dir: dir}); !errors.Is(err, ErrNotSupported) && !errors.Is(err, ErrUnfit) {
			t.Error(err)
		}
	}
	if n := openFiles(t); n != before {
		t.Errorf("%d open files, before %d", n, before)
	}
}

// A directory that is fit leaves nothing behind. Whether this one is depends on the machine.
func TestCheckDir(t *testing.T) {
	dir := t.TempDir()
	if err := CheckDir(dir); err != nil && !errors.Is(err, ErrUnfit) {
		t.Error(err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
		t.Errorf("%v, %v", list, err)
	}
	if err := CheckDir("/proc"); !errors.Is(err, ErrUnfit) {
		t.Errorf("/proc: %v", err)
	}
}

// What is about a file is written in its directory, by a thread of its own.
func TestCull(t *testing.T) {
	dir := t.TempDir()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	k := newBound(t)
	var answer error
	var where []string
	k.onWrite = func(c string) error {
		cwd, err := os.Readlink("/proc/thread-self/cwd")
		where = append(where, fmt.Sprint(c, " in ", cwd, err))
		return answer
	}
	d := newOn(k, Options{})
	for _, c := range []struct {
		answer, want error
		used         bool
	}{{nil, nil, false}, {unix.EBUSY, ErrInUse, true}, {unix.ESTALE, nil, false}, {unix.ENOENT, nil, false}} {
		answer = c.answer
		if err := d.Cull(dir, "Dname"); !errors.Is(err, c.want) {
			t.Errorf("cull, %v: %v", c.answer, err)
		}
		if used, err := d.InUse(dir, "Dname"); used != c.used || err != nil {
			t.Errorf("inuse, %v: %v, %v", c.answer, used, err)
		}
	}
	answer = unix.EIO
	if err := d.Cull(dir, "Dname"); !errors.Is(err, unix.EIO) {
		t.Error(err)
	}
	if _, err := d.InUse(dir, "Dname"); !errors.Is(err, unix.EIO) {
		t.Error(err)
	}
	var want []string
	for range 5 {
		want = append(want, "cull Dname in "+dir+"<nil>", "inuse Dname in "+dir+"<nil>")
	}
	if !slices.Equal(where, want) {
		t.Errorf("written: %q", where)
	}
	for _, name := range []string{"", "a/b", "a b", "a\n", strings.Repeat("a", 256)} {
		if err := d.Cull(dir, name); err == nil {
			t.Errorf("culled %q", name)
		}
	}
	if err := d.Cull(filepath.Join(dir, "none"), "Dname"); err != nil {
		t.Errorf("in no directory: %v", err)
	}
	if len(where) != len(want) {
		t.Errorf("written: %q", where[len(want):])
	}
	if now, err := os.Getwd(); err != nil || now != here {
		t.Errorf("working directory %s, was %s, %v", now, here, err)
	}
}

// A sweep culls all that is not in use, wherever it is, and says how much that was.
func TestSweep(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "odd [dir]*")
	shard := func(volume, n string) string { return filepath.Join(dir, "cache", "Ierofs,"+volume, "@"+n) }
	for _, d := range []string{shard("one", "00"), shard("one", "ff"), shard("two", "00"), shard("two", "empty"), filepath.Join(dir, "graveyard")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{
		shard("one", "00") + "/Dfree", shard("one", "00") + "/Dused", shard("one", "ff") + "/Dgone",
		shard("two", "00") + "/Dbad", shard("two", "00") + "/Dfree",
		filepath.Join(dir, "graveyard", "Dother"), filepath.Join(dir, "cache", "Dother"),
	} {
		if err := os.WriteFile(name, make([]byte, 8192), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	k := newBound(t)
	k.onWrite = func(c string) error {
		switch name := strings.TrimPrefix(c, "cull "); name {
		case "Dfree":
			return os.Remove("/proc/thread-self/cwd/" + name)
		case "Dused":
			return unix.EBUSY
		case "Dgone":
			return unix.ESTALE
		}
		return unix.EIO
	}
	d := newOn(k, Options{Dir: dir})
	files, bytes, err := d.Sweep()
	if files != 2 || bytes < 2*8192 || !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "Dbad") || strings.Contains(err.Error(), "Dother") {
		t.Errorf("%d files, %d bytes, %v", files, bytes, err)
	}
	if files, bytes, err = d.Sweep(); files != 0 || bytes != 0 || !errors.Is(err, unix.EIO) {
		t.Errorf("again: %d files, %d bytes, %v", files, bytes, err)
	}
	if files, _, err := newOn(k, Options{Dir: filepath.Join(dir, "none")}).Sweep(); files != 0 || err != nil {
		t.Errorf("of nothing: %d files, %v", files, err)
	}
	if _, _, err := newOn(k, Options{}).Sweep(); err == nil {
		t.Error("swept without a directory")
	}
}

// Whoever has a device or an object open is found, and nobody else.
func TestHolders(t *testing.T) {
	var st unix.Stat_t
	if err := unix.Stat(os.DevNull, &st); err != nil {
		t.Fatal(err)
	}
	proc := t.TempDir()
	for name, target := range map[string]string{
		"10/fd/0": os.DevNull, "10/fd/3": "/dev/cachefiles", "11/fd/5": objectName, "12/fd/3": os.DevNull, "12/fd/4": "socket:[7]",
		"13/fd/3": filepath.Join(proc, "cachefiles"), "9/fd/7": filepath.Join(proc, "with device", "cachefiles"), "self/fd/3": objectName,
	} {
		name = filepath.Join(proc, name)
		dir := filepath.Dir(name)
		comm := filepath.Join(filepath.Dir(dir), "comm")
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.Symlink(target, name), os.WriteFile(comm, []byte("nydusd\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(filepath.Join(proc, "cachefiles"), nil, 0o600), os.Mkdir(filepath.Join(proc, "with device"), 0o700),
		os.Symlink(os.DevNull, filepath.Join(proc, "with device", "cachefiles"))); err != nil {
		t.Fatal(err)
	}
	got := holders(proc, st.Rdev)
	if want := []Holder{{9, "nydusd"}, {11, "nydusd"}}; !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	if s := named(got); s != "by nydusd (process 9), nydusd (process 11)" {
		t.Error(s)
	}
	if s := named(nil); s == "" {
		t.Error("no words")
	}
	if got := holders(proc, 0); len(got) != 1 {
		t.Errorf("without a device: %v", got)
	}
}

func TestAligned(t *testing.T) {
	k := newBound(t)
	s, c := start(t, k, 3<<20)
	s.expect(t, s.mount(t, "one"), c, 0, 3<<20) // the kernel looks
	if b := aligned(3 * pageBytes); len(b) != 3*pageBytes || cap(b) != len(b) {
		t.Errorf("%d of %d bytes", len(b), cap(b))
	}
}

// TestCheck: a kernel that has given the cache up takes no command at all; others only do not know this one.
func TestCheck(t *testing.T) {
	k := newBound(t)
	d := newOn(k, Options{})
	if err := d.Check(); err != nil {
		t.Error(err)
	}
	k.onWrite = func(string) error { return unix.EIO }
	if err := d.Check(); !errors.Is(err, ErrDead) || !errors.Is(err, unix.EIO) {
		t.Error(err)
	}
}
