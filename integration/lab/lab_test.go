package lab

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// TestOverlayfs runs a container without our daemon: it tests the lab alone.
func TestOverlayfs(t *testing.T) {
	l := New(t, Options{NoDaemon: true, Images: []string{"busybox-gzip"}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ref := l.Ref("busybox-gzip")
	if _, err := l.Ctr(ctx, "image", "pull", "--plain-http", "--snapshotter", "overlayfs", ref); err != nil {
		t.Fatal(err)
	}
	out, err := l.Ctr(ctx, "run", "--rm", "--snapshotter", "overlayfs", ref, "c1", "/bin/echo", "hello")
	if err != nil {
		t.Fatal(err)
	}
	if out != "hello\n" {
		t.Errorf("container printed %q, want hello", out)
	}
	if _, err := l.Client().Version(l.Context(ctx)); err != nil {
		t.Error(err)
	}
}

// TestCloseEndsContainers closes a lab with a running container and a stopped containerd, the worst state a test can leave.
func TestCloseEndsContainers(t *testing.T) {
	l := New(t, Options{NoDaemon: true, Images: []string{"busybox-gzip"}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ref := l.Ref("busybox-gzip")
	if _, err := l.Ctr(ctx, "image", "pull", "--plain-http", "--snapshotter", "overlayfs", ref); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Ctr(ctx, "run", "--detach", "--snapshotter", "overlayfs", ref, "sleeper", "/bin/sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	if err := l.KillContainerd(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if points, err := l.Mounts(""); err != nil || len(points) > 0 {
		t.Errorf("still mounted: %q, error %v", points, err)
	}
	if _, err := os.Stat(l.Dir); !os.IsNotExist(err) {
		t.Errorf("directory %s is still there (%v)", l.Dir, err)
	}
	if n := processesOf(l.Dir); n != 0 {
		t.Errorf("%d processes are still there", n)
	}
	if _, err := os.Stat(filepath.Join("/run/containerd/runc", l.Namespace)); !os.IsNotExist(err) {
		t.Errorf("runc's state is still there (%v)", err)
	}
}

// TestRestart shows that the client and the images survive containerd.
func TestRestart(t *testing.T) {
	l := New(t, Options{NoDaemon: true, CRI: true, Images: []string{"busybox-zstd"}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := l.Ctr(ctx, "image", "pull", "--plain-http", "--snapshotter", "overlayfs", l.Ref("busybox-zstd")); err != nil {
		t.Fatal(err)
	}
	for _, end := range []func() error{l.StopContainerd, l.KillContainerd} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if err := l.StartContainerd(ctx); err != nil {
			t.Fatal(err)
		}
		images, err := l.Client().ListImages(l.Context(ctx))
		if err != nil || len(images) != 1 {
			t.Fatalf("images %v, error %v, want one image", images, err)
		}
	}
}

// TestSnapshotter pulls and runs with our daemon, which is killed and started again under a running container.
func TestSnapshotter(t *testing.T) {
	testenv.Need(t, testenv.EROFS)
	l := New(t, Options{CRI: true, Images: []string{"nginx-zstd"}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ref := l.Ref("nginx-zstd")
	if _, err := l.Ctr(ctx, "image", "pull", "--plain-http", "--snapshotter", Snapshotter, ref); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Ctr(ctx, "run", "--detach", "--snapshotter", Snapshotter, ref, "web", "/bin/sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	if err := l.KillSnapshotter(); err != nil {
		t.Fatal(err)
	}
	out, err := l.Ctr(ctx, "task", "exec", "--exec-id", "e1", "web", "/bin/cat", "/var/www/html/index.html")
	if err != nil || out != "<h1>ok</h1>\n" {
		t.Fatalf("while the daemon is away the page is %q, error %v", out, err)
	}
	if err := l.StartSnapshotter(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Ctr(ctx, "run", "--rm", "--snapshotter", Snapshotter, ref, "after", "/bin/true"); err != nil {
		t.Fatal(err)
	}
	points, err := l.Mounts("snapshotter")
	if err != nil || len(points) == 0 {
		t.Errorf("mounts of the daemon: %q, error %v, want some", points, err)
	}
}

// TestKeeper kills the keeper that the lab started, alone and together with the daemon.
func TestKeeper(t *testing.T) {
	testenv.Need(t, testenv.EROFS)
	l := New(t, Options{KeeperPatience: time.Minute})
	keeper := func() int {
		t.Helper()
		pid, err := l.KeeperPID()
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	first := keeper()
	if first == 0 {
		t.Fatal("no keeper runs")
	}
	if err := l.KillBoth(); err != nil {
		t.Fatal(err)
	}
	if keeper() != 0 || l.SnapshotterPID() != 0 {
		t.Errorf("keeper %d and daemon %d run", keeper(), l.SnapshotterPID())
	}
	if err := l.StartKeeper(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := keeper()
	if second == 0 || second == first {
		t.Errorf("keeper %d after %d", second, first)
	}
	if err := l.KillKeeper(); err != nil {
		t.Fatal(err)
	}
	if pid := keeper(); pid == second {
		t.Errorf("keeper %d still runs", pid)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if n := processesOf(l.Dir); n != 0 {
		t.Errorf("%d processes are still there", n)
	}
}

var fuse = testenv.Feature{Name: "fuse", Missing: func() error {
	_, err := os.Stat("/dev/fuse")
	return err
}}

// TestStargz runs a container whose layers are mounted by the stargz snapshotter.
func TestStargz(t *testing.T) {
	testenv.Need(t, fuse)
	l := New(t, Options{NoDaemon: true, Stargz: true, Images: []string{"busybox-estargz"}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ref := l.Ref("busybox-estargz")
	if _, err := l.Ctr(ctx, "image", "pull", "--plain-http", "--snapshotter", Stargz, ref); err != nil {
		t.Fatal(err)
	}
	if points, err := l.Mounts("stargz"); err != nil || len(points) != 1 {
		t.Errorf("mounts of the layers: %q, error %v, want one", points, err)
	}
	out, err := l.Ctr(ctx, "run", "--rm", "--snapshotter", Stargz, ref, "c1", "/bin/echo", "hello")
	if err != nil || out != "hello\n" {
		t.Errorf("the container printed %q, error %v, want hello", out, err)
	}
}

// TestClearAbandoned kills the owner of a lab with a running container and lets the next one clear up.
func TestClearAbandoned(t *testing.T) {
	testenv.Need(t, testenv.Root, Tools, Image("busybox-gzip"))
	if parent := os.Getenv("LAB_TEST_ABANDON"); parent != "" {
		abandon(t, parent)
	}
	parent, err := os.MkdirTemp("", "ab")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(parent)
	cmd := exec.Command(os.Args[0], "-test.run", "^TestClearAbandoned$")
	cmd.Env = append(os.Environ(), "LAB_TEST_ABANDON="+parent)
	out, err := cmd.CombinedOutput()
	if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("owner ended with %v, want a kill\n%s", err, out)
	}
	dirs, _ := filepath.Glob(filepath.Join(parent, dirPrefix+"*"))
	if len(dirs) != 1 || processesOf(dirs[0]) == 0 {
		t.Fatalf("directories %q with %d processes, want one with some", dirs, processesOf(parent))
	}
	clearAbandoned(parent)
	if n := processesOf(parent); n != 0 {
		t.Errorf("%d processes are left", n)
	}
	if points, err := mountsBelow(parent); err != nil || len(points) > 0 {
		t.Errorf("still mounted: %q, error %v", points, err)
	}
	if _, err := os.Stat(dirs[0]); !os.IsNotExist(err) {
		t.Errorf("%s is still there (%v)", dirs[0], err)
	}
}

// abandon starts a lab with a container and kills its own process.
func abandon(t *testing.T, parent string) {
	opts := Options{NoDaemon: true, KeeperPatience: time.Minute, Images: []string{"busybox-gzip"}, Dir: parent}
	l, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	ref := l.Ref("busybox-gzip")
	if _, err := l.Ctr(t.Context(), "image", "pull", "--plain-http", "--snapshotter", "overlayfs", ref); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Ctr(t.Context(), "run", "--detach", "--snapshotter", "overlayfs", ref, "sleeper", "/bin/sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {}
}

// processesOf counts the processes whose command line names a directory.
func processesOf(dir string) (n int) {
	for _, args := range processes() {
		if strings.Contains(strings.Join(args, " "), dir+"/") {
			n++
		}
	}
	return n
}

// TestResume takes over the directory of a lab whose processes are gone: containerd and the registry have what they had.
func TestResume(t *testing.T) {
	o := Options{NoDaemon: true, Images: []string{"busybox-gzip"}, Registry: Registry{Address: "127.0.0.1:5901"}}
	before := New(t, o)
	ref := before.Ref("busybox-gzip")
	if _, err := before.Ctr(t.Context(), "image", "pull", "--plain-http", "--snapshotter", "overlayfs", ref); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(before.KillContainerd(), before.StopRegistry()); err != nil {
		t.Fatal(err)
	}
	o.Resume = before.Dir
	after := New(t, o)
	if after.Ref("busybox-gzip") != ref {
		t.Errorf("the image is %s now, it was %s", after.Ref("busybox-gzip"), ref)
	}
	if out, err := after.Ctr(t.Context(), "image", "ls", "-q"); err != nil || strings.TrimSpace(out) != ref {
		t.Errorf("images %q, %v, want %s", out, err, ref)
	}
	if _, err := after.Ctr(t.Context(), "content", "fetch", "--plain-http", ref); err != nil {
		t.Errorf("the registry has lost the image: %v", err)
	}
}

// TestFillRegistry: a lab whose registry begins with the files of another one.
func TestFillRegistry(t *testing.T) {
	o := Options{NoDaemon: true, Images: []string{"busybox-gzip"}}
	first := New(t, o)
	t.Setenv("EROFS_TEST_REGISTRY", first.RegistryFiles())
	o.Images = nil
	second := New(t, o)
	ref := second.Ref("busybox-gzip")
	if _, err := second.Ctr(t.Context(), "content", "fetch", "--plain-http", ref); err != nil {
		t.Error(err)
	}
	if err := second.Push(t.Context(), Layout("busybox-gzip"), ref); err != nil {
		t.Errorf("push what is there: %v", err)
	}
}
