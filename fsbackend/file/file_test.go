package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/backendtest"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/loop"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountinfo"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/probe"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

var (
	fileBacked  = testenv.Feature{Name: "file-backed", Missing: func() error { return probe.HaveFileBacked(os.TempDir()) }}
	loopDevices = testenv.Feature{Name: "loop", Missing: func() error { return probe.HaveLoop(os.TempDir()) }}
)

func TestAuto(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	suite(t, Options{})
}

func TestFileBacked(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS, fileBacked)
	suite(t, Options{Mode: File})
}

func TestFileBackedDirect(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS, fileBacked)
	suite(t, Options{Mode: File, Direct: Always})
}

func TestLoop(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS, loopDevices)
	suite(t, Options{Mode: Loop})
}

func TestLoopDirect(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS, loopDevices)
	suite(t, Options{Mode: Loop, Direct: Always})
}

func suite(t *testing.T, o Options) {
	backendtest.Run(t, func(*testing.T) fsbackend.Backend { return New(o) }, backendtest.TinyImage)
}

// The probe's answer is what a mount would have told.
func TestProbeAgrees(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	disk, memory := t.TempDir(), tmpfs(t)
	for _, dir := range []string{disk, memory} {
		img := backendtest.TinyImage(t, dir, 1)
		for mode, ask := range map[Mode]func(string) error{File: probe.HaveFileBacked, Loop: probe.HaveLoop} {
			target := t.TempDir()
			b := New(Options{Mode: mode})
			answer, err := ask(dir), b.Mount(t.Context(), img, target)
			if (answer == nil) != (err == nil) {
				t.Errorf("mode %d in %s: the probe says %v, Mount says %v", mode, dir, answer, err)
			}
			if err := b.Unmount(t.Context(), target); err != nil {
				t.Error(err)
			}
		}
	}
}

// sourceOf mounts image 1 and returns what the mount table says it was made of.
func sourceOf(t *testing.T, m Mode, img fsbackend.Image) string {
	t.Helper()
	target := t.TempDir()
	b := New(Options{Mode: m})
	if err := b.Mount(t.Context(), img, target); err != nil {
		t.Fatal(err)
	}
	defer b.Unmount(context.WithoutCancel(t.Context()), target)
	got, err := os.ReadFile(filepath.Join(target, backendtest.FileName))
	if err != nil || string(got) != string(backendtest.Content(1)) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	entries, err := mountinfo.Read(mountinfo.Self)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Point == target {
			return e.Source
		}
	}
	t.Fatal("not mounted")
	return ""
}

func TestAutoPrefersFiles(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS, fileBacked)
	img := backendtest.TinyImage(t, t.TempDir(), 1)
	if src := sourceOf(t, Auto, img); strings.HasPrefix(src, "/dev/loop") {
		t.Errorf("mounted over %s", src)
	}
}

// The kernel reads no EROFS metadata from tmpfs without a block device.
func TestAutoUsesLoopOnTmpfs(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS, loopDevices)
	dir := tmpfs(t)
	img := backendtest.TinyImage(t, dir, 1)
	if src := sourceOf(t, Auto, img); !strings.HasPrefix(src, "/dev/loop") {
		t.Errorf("mounted from %s", src)
	}
	err := New(Options{Mode: File}).Mount(t.Context(), img, t.TempDir())
	if !errors.Is(err, fsbackend.ErrNotSupported) || !errors.Is(err, unix.ENOTBLK) {
		t.Errorf("mode File on tmpfs: %v", err)
	}
}

// A damaged image is not tried again over loop devices: the first error is the right one.
func TestAutoDoesNotHideErrors(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS, fileBacked)
	img := backendtest.TinyImage(t, t.TempDir(), 1)
	if err := os.Truncate(img.Meta, 0); err != nil {
		t.Fatal(err)
	}
	err := New(Options{}).Mount(t.Context(), img, t.TempDir())
	if err == nil || strings.Contains(err.Error(), "loop") || !strings.Contains(err.Error(), "dmesg") {
		t.Errorf("got %v", err)
	}
}

func TestSourceNamesTheInstance(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS, fileBacked)
	dir := filepath.Join(t.TempDir(), "0a1b2c")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if src := sourceOf(t, File, backendtest.TinyImage(t, dir, 1)); !strings.HasSuffix(src, "/0a1b2c/meta.erofs") {
		t.Errorf("source in the mount table is %s", src)
	}
}

// Options hold 255 bytes and end at commas; paths may be longer and have any byte.
func TestLongOddPaths(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS, fileBacked)
	dir := t.TempDir()
	for range 3 {
		dir = filepath.Join(dir, strings.Repeat("long,odd \\:=", 16))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	img := backendtest.TinyImage(t, dir, 1)
	// The directory and the file name of an instance are short; everything above is what an operator chose.
	short := filepath.Join(dir, "instance")
	if err := os.Mkdir(short, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*string{&img.Meta, &img.Data} {
		to := filepath.Join(short, filepath.Base(*p))
		if err := os.Rename(*p, to); err != nil {
			t.Fatal(err)
		}
		*p = to
	}
	sourceOf(t, File, img)
}

func TestRelativePaths(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS, fileBacked)
	t.Chdir(t.TempDir())
	sourceOf(t, File, backendtest.TinyImage(t, ".", 1))
}

func TestHints(t *testing.T) {
	for in, want := range map[error]string{
		unix.ENODEV:  "modprobe erofs",
		unix.ENOTBLK: "Linux 6.12",
		loop.ErrNone: "modprobe loop",
	} {
		err := hint(fmt.Errorf("attempt: %w", in))
		if !errors.Is(err, in) || !errors.Is(err, fsbackend.ErrNotSupported) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v became %v", in, err)
		}
	}
	if err := hint(unix.EPERM); err != unix.EPERM {
		t.Errorf("EPERM became %v", err)
	}
}

func TestPipeIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openRegular(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}

// BenchmarkMount measures a mount and its removal.
func BenchmarkMount(b *testing.B) {
	for name, mode := range map[string]Mode{"file": File, "loop": Loop} {
		b.Run(name, func(b *testing.B) {
			testenv.Need(b, testenv.Root, testenv.EROFS, fileBacked, loopDevices)
			img, target := backendtest.TinyImage(b, b.TempDir(), 1), b.TempDir()
			backend := New(Options{Mode: mode})
			var mounting time.Duration
			for b.Loop() {
				start := time.Now()
				if err := backend.Mount(b.Context(), img, target); err != nil {
					b.Fatal(err)
				}
				mounting += time.Since(start)
				if err := backend.Unmount(b.Context(), target); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(mounting.Microseconds())/float64(b.N), "µs/mount")
		})
	}
}

func tmpfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fsbackend.Unmount(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}
