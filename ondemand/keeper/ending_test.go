package keeper

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// A signal ends a keeper when it holds nothing, and not before.
func TestSignal(t *testing.T) {
	at := address(t)
	k := spawn(t, "keeper", at, "1h")
	k.expect("ready")
	c := holdAll(t, at, "a", "b")
	must(t, k.cmd.Process.Signal(syscall.SIGTERM))
	eventually(t, "the keeper has been told", func() bool { return status(t, at).Ending })
	must(t, k.cmd.Process.Signal(syscall.SIGTERM))
	must(t, c.Drop(timeout(t), "a"))
	must(t, c.Hold(timeout(t), standIn(t, "c"))) // a mount may still be made, and is safe
	must(t, c.Drop(timeout(t), "b"))
	if !k.lives() {
		t.Fatal("it has ended while it held something")
	}
	if err := c.Drop(timeout(t), "c"); err != nil {
		t.Error(err)
	}
	k.wait()
	if k.err != nil {
		t.Error(k.err)
	}
	if _, err := os.Lstat(at); err == nil {
		t.Error("the socket is left")
	}
}

// A context that cannot end is no signal.
func TestNoSignal(t *testing.T) {
	at := address(t)
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- Serve(context.Background(), Options{Address: at, Ready: func() { close(ready) }}) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	c := holdAll(t, at, "a")
	must(t, c.Drop(timeout(t), "a"))
	if r := status(t, at); r.Ending {
		t.Errorf("%+v", r)
	}
	spawn(t, "keeper", at, "1h", "replace").expect("ready")
	must(t, <-ended)
}

// A keeper that will not end can be replaced.
func TestReplaceAfterSignal(t *testing.T) {
	at := address(t)
	k := spawn(t, "keeper", at, "1h")
	k.expect("ready")
	holdAll(t, at, "a")
	must(t, k.cmd.Process.Signal(syscall.SIGTERM))
	eventually(t, "the keeper has been told", func() bool { return status(t, at).Ending })
	spawn(t, "keeper", at, "1h", "replace").expect("ready")
	k.wait()
	if r := status(t, at); r.Ending || len(r.Names) != 1 {
		t.Errorf("%+v", r)
	}
}

func TestAlone(t *testing.T) {
	proc := t.TempDir()
	process := func(pid int, program string) {
		t.Helper()
		dir := filepath.Join(proc, strconv.Itoa(pid))
		must(t, os.Mkdir(dir, 0o700))
		if program != "" { // the exe of a kernel thread cannot be read, which is ENOENT too
			must(t, os.Symlink(program, filepath.Join(dir, "exe")))
		}
	}
	must(t, os.Mkdir(filepath.Join(proc, "sys"), 0o700))
	process(1, "/usr/lib/systemd/systemd-shutdown")
	process(os.Getpid(), "/usr/local/bin/erofs-snapshotter-keeper")
	process(2, "")
	if !alone(proc) {
		t.Error("kernel threads are taken for readers")
	}
	process(1<<22+1, "/bin/sh")
	if alone(proc) {
		t.Error("another process is overlooked")
	}
	if alone("/proc") {
		t.Error("the process that runs the tests is overlooked")
	}
	if alone(filepath.Join(proc, "none")) {
		t.Error("not knowing is taken for nobody")
	}
	if goingDown() {
		t.Error("this machine is not going down")
	}
}
