package loop

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

var devices = testenv.Feature{Name: "loop", Missing: func() error {
	_, err := os.Stat("/dev/loop-control")
	return err
}}

func backingFile(t *testing.T, content []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "backing"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	return f
}

func attached(f *os.File) int {
	n := 0
	paths, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, p := range paths {
		if b, err := os.ReadFile(p); err == nil && strings.HasPrefix(string(b), f.Name()) {
			n++
		}
	}
	return n
}

func mustClear(t *testing.T, f *os.File) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); attached(f) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d loop devices left for %s", attached(f), f.Name())
		}
	}
}

func TestAttach(t *testing.T) {
	testenv.Need(t, testenv.Root, devices)
	content := bytes.Repeat([]byte("0123456789abcdef"), 512)
	f := backingFile(t, content)
	ds, err := Attach(t.Context(), f, f)
	if err != nil {
		t.Fatal(err)
	}
	defer ds.Close()
	if attached(f) != 2 || ds[0].Path == ds[1].Path {
		t.Fatalf("%d devices attached: %+v", attached(f), ds)
	}
	for _, d := range ds {
		if got, err := os.ReadFile(d.Path); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s reads %d bytes, %v", d.Path, len(got), err)
		}
		if w, err := os.OpenFile(d.Path, os.O_WRONLY, 0); err == nil {
			_, err = w.Write(content[:512])
			w.Close()
			if err == nil {
				t.Errorf("%s can be written", d.Path)
			}
		}
	}
	ds.Close()
	mustClear(t, f)
}

func TestErrorLeavesNoDevice(t *testing.T) {
	testenv.Need(t, testenv.Root, devices)
	f := backingFile(t, make([]byte, 4096))
	pipe, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer w.Close()
	if _, err := Attach(t.Context(), f, pipe); !errors.Is(err, unix.EINVAL) {
		t.Errorf("attach of a pipe: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Attach(ctx, f); !errors.Is(err, context.Canceled) {
		t.Errorf("attach with a cancelled context: %v", err)
	}
	mustClear(t, f)
}

// TestRace competes with itself as another process would, without the mutex.
func TestRace(t *testing.T) {
	testenv.Need(t, testenv.Root, devices)
	f := backingFile(t, make([]byte, 4096))
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 10 {
				d, err := attachFree(control, flags, f)
				if err == nil {
					d.node.Close()
				} else if !taken(err) {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range 10 {
				ds, err := Attach(t.Context(), f)
				if err != nil {
					t.Error(err)
				}
				ds.Close()
			}
		})
	}
	wg.Wait()
	mustClear(t, f)
}

// With direct I/O the content is the same, and the kernel says that the file's page cache is not used. Directories on filesystems
// without direct I/O get devices all the same.
func TestAttachDirect(t *testing.T) {
	testenv.Need(t, testenv.Root, devices)
	content := bytes.Repeat([]byte("0123456789abcdef"), 512)
	f := backingFile(t, content)
	ds, err := AttachDirect(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	defer ds.Close()
	if got, err := os.ReadFile(ds[0].Path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%s reads %d bytes, %v", ds[0].Path, len(got), err)
	}
	dio, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(ds[0].Path), "loop/dio"))
	if err != nil {
		t.Fatal(err)
	}
	can, err := os.OpenFile(f.Name(), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Logf("no direct I/O here (%v): dio is %s", err, bytes.TrimSpace(dio))
		return
	}
	can.Close()
	if string(bytes.TrimSpace(dio)) != "1" {
		t.Errorf("the device does not use direct I/O: dio is %s", bytes.TrimSpace(dio))
	}
}
