package file

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/backendtest"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// cachestat tells how much of a file is in memory.
var cachestat = testenv.Feature{Name: "cachestat", Missing: func() error {
	f, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &unix.Cachestat_t{}, 0)
	if errors.Is(err, unix.ENOSYS) {
		return err
	}
	return nil
}}

var directIO = testenv.Feature{Name: "direct-io", Missing: func() error {
	f, err := os.CreateTemp("", "")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	d, err := os.OpenFile(f.Name(), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	return d.Close()
}}

// With direct I/O memory holds the blocks of the mounted file and not those of the data blob; without, it holds both.
func TestDirectReadsPastThePageCache(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS, fileBacked, loopDevices, cachestat, directIO)
	for _, mode := range []Mode{File, Loop} {
		for _, direct := range []Direct{Never, WhenCold, Always} {
			img := backendtest.TinyImage(t, t.TempDir(), 1)
			forget(t, img.Data)
			target := mountAt(t, Options{Mode: mode, Direct: direct}, img)
			readBack(t, target)
			if n := cachedPages(t, filepath.Join(target, backendtest.FileName)); n == 0 {
				t.Errorf("mode %d, direct %d: nothing of the mounted file is in memory", mode, direct)
			}
			if n := cachedPages(t, img.Data); (n > 0) != (direct == Never) {
				t.Errorf("mode %d, direct %d: %d pages of the data blob are in memory", mode, direct, n)
			}
		}
	}
}

// What a conversion has left in memory is not read from the disk again, until it has left.
func TestWhenCold(t *testing.T) {
	testenv.Need(t, testenv.Root, cachestat, directIO)
	img := backendtest.TinyImage(t, t.TempDir(), 1)
	f, err := os.Open(img.Data)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if WhenCold.now(f) || !Always.now(f) {
		t.Errorf("just written: when cold %t, always %t", WhenCold.now(f), Always.now(f))
	}
	forget(t, img.Data)
	if !WhenCold.now(f) || Never.now(f) {
		t.Errorf("not in memory: when cold %t, never %t", WhenCold.now(f), Never.now(f))
	}
}

// Where files cannot do direct I/O, or EROFS needs a block device, they are mounted and read all the same.
func TestDirectIsNeverInTheWay(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS, fileBacked, loopDevices)
	disk, memory := t.TempDir(), tmpfs(t)
	img := backendtest.TinyImage(t, memory, 1)
	readBack(t, mountAt(t, Options{Direct: Always}, img))

	mixed := fsbackend.Image{Meta: backendtest.TinyImage(t, disk, 1).Meta, Data: img.Data}
	readBack(t, mountAt(t, Options{Direct: Always}, mixed))
}

// What a data blob is like that was cut below a mount does not depend on how it is read. Old kernels show zeros there, others EIO.
func TestDirectOfACutFile(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS, fileBacked)
	outcome := map[Direct]error{}
	for _, direct := range []Direct{Never, Always} {
		img := backendtest.TinyImage(t, t.TempDir(), 1)
		target := mountAt(t, Options{Mode: File, Direct: direct}, img)
		if err := os.Truncate(img.Data, 4096); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(target, backendtest.FileName))
		if outcome[direct] = err; err == nil && bytes.Equal(got, backendtest.Content(1)) {
			t.Errorf("direct %d: bytes that the file no longer has", direct)
		}
	}
	if (outcome[Never] == nil) != (outcome[Always] == nil) {
		t.Errorf("through the page cache: %v, with direct I/O: %v", outcome[Never], outcome[Always])
	}
	t.Log(outcome[Always])
}

func mountAt(t *testing.T, o Options, img fsbackend.Image) string {
	t.Helper()
	target := t.TempDir()
	if err := New(o).Mount(t.Context(), img, target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fsbackend.Unmount(target); err != nil {
			t.Error(err)
		}
	})
	return target
}

func readBack(t *testing.T, target string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(target, backendtest.FileName))
	if err != nil || !bytes.Equal(got, backendtest.Content(1)) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
}

// forget writes a file back and drops it from memory.
func forget(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)); err != nil {
		t.Fatal(err)
	}
}

func cachedPages(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var stat unix.Cachestat_t
	if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &stat, 0); err != nil {
		t.Fatal(err)
	}
	return stat.Cache
}
