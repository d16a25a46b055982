package fscache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/cachefiles"
)

// mounterVariable is an image and where to mount it, of a process that does so and has the device as descriptor 3.
const mounterVariable = "EROFS_FSCACHE_MOUNTER"

type mounting struct {
	Meta, Data, Target string
	Cookies            *fsbackend.Cookies
}

func mounter() int {
	var m mounting
	err := json.Unmarshal([]byte(os.Getenv(mounterVariable)), &m)
	if err == nil {
		err = backend.Mount(context.Background(), fsbackend.Image{Meta: m.Meta, Data: m.Data, Cookies: m.Cookies}, m.Target)
	}
	fmt.Fprintln(os.Stderr, err)
	return 0
}

// TestKilledWhileMounting: a daemon that is killed before it has answered what a mount of its own asks ends all the same, with all its descriptors. A
// successor answers.
func TestKilledWhileMounting(t *testing.T) {
	device, _, domain := keep(t)
	s := newStore(t.TempDir())
	i := s.instance(t, domain, 64)
	img := i.mountable()
	b, err := json.Marshal(mounting{img.Meta, img.Data, t.TempDir(), img.Cookies})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), mounterVariable+"="+string(b))
	cmd.ExtraFiles = []*os.File{device}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an OPEN waits", func() bool {
		p := []unix.PollFd{{Fd: int32(device.Fd()), Events: unix.POLLIN}}
		_, err := unix.Poll(p, 0)
		return err == nil && p[0].Revents&unix.POLLIN != 0
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("a killed process that mounts does not end")
	}
	d, err := cachefiles.Adopt(device, cachefiles.Options{Lookup: s.lookup})
	if err != nil && !errors.Is(err, cachefiles.ErrNoRestore) {
		t.Fatal(err)
	}
	defer d.Close()
	defer serve(t, d)()
	eventually(t, "what was asked is answered", func() bool { return d.Stats().Opens > 0 })
	expect(t, mount(t, i.mountable()), i.content)
	eventually(t, "nobody has the first mount", func() bool { return !hasSuperblock(t, img) })
}
