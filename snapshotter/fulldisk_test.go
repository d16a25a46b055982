package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// smallDisk mounts an ext4 of size bytes.
func smallDisk(t *testing.T, size int64) string {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.EROFS, testenv.Tool("mkfs.ext4"))
	dir := t.TempDir()
	image, disk := filepath.Join(dir, "image"), filepath.Join(dir, "disk")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, size))
	out, err := exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", image).CombinedOutput()
	if err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	must(t, os.Mkdir(disk, 0o700))
	must(t, mount.All([]mount.Mount{{Type: "ext4", Source: image, Options: []string{"loop"}}}, disk))
	t.Cleanup(func() { must(t, mount.UnmountAll(disk, 0)) })
	return disk
}

// fillDisk leaves no block free, and returns what makes room again.
func fillDisk(t *testing.T, disk string) (empty func()) {
	t.Helper()
	path := filepath.Join(disk, "filler")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	must(t, err)
	for size := 1 << 20; size >= 4096; size /= 2 {
		for err == nil {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		must(t, f.Sync())
		err = nil
	}
	must(t, f.Close())
	return func() { must(t, os.Remove(path)) }
}

// TestFullDisk: nothing new can be made, the reason is said, and what is there can be removed; also after a restart.
func TestFullDisk(t *testing.T) {
	disk := smallDisk(t, 16<<20)
	root := filepath.Join(disk, "root")
	t.Cleanup(func() { unmountBelow(t, root) })
	s := start(t, immediate(root))
	// As many as fill a block of the directory of layers: there is no room for another name in it.
	var images []string
	for i := range 44 {
		images = append(images, fmt.Sprint("image ", i))
		pull(t, s, images[i], "", "file", images[i])
	}
	_, err := s.Prepare(t.Context(), "active", "")
	must(t, err)
	layer := tarOf(t, "file", strings.Repeat("not that compressible", 1<<20))
	fillDisk(t, disk)

	_, err = s.Prepare(t.Context(), "more", images[0])
	wantFull(t, "prepare", err)
	_, _, err = s.layers.Import(t.Context(), digest.FromBytes(layer), func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(layer)), nil
	})
	wantFull(t, "import", err)
	wantFull(t, "commit", s.Commit(t.Context(), "committed", "active"))
	must(t, s.Close())

	s = start(t, immediate(root))
	must(t, s.Remove(t.Context(), "active"))
	for _, name := range images {
		must(t, s.Remove(t.Context(), name))
	}
	must(t, s.Cleanup(t.Context()))
	must(t, checkConsistent(t.Context(), s))
	_, err = s.Prepare(t.Context(), "more", "")
	must(t, err)
}

// TestRemoveOnAFullDisk: whatever the metadata has grown to, there is room for another change.
func TestRemoveOnAFullDisk(t *testing.T) {
	disk := smallDisk(t, 16<<20)
	s := start(t, immediate(filepath.Join(disk, "root")))
	long := strings.Repeat("x", 300)
	for i := range 40 {
		for _, key := range []string{"a", "b"} {
			_, err := s.Prepare(t.Context(), fmt.Sprint(key, i, long), "")
			must(t, err)
		}
		empty := fillDisk(t, disk)
		must(t, s.Remove(t.Context(), fmt.Sprint("a", i, long)))
		empty()
	}
}

func wantFull(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, unix.ENOSPC) || !errdefs.IsResourceExhausted(err) {
		t.Errorf("%s on a full disk: %v", what, err)
	}
}

// freeBytes is what is free on a disk after what was deleted is given back.
func freeBytes(t *testing.T, disk string) int64 {
	t.Helper()
	d, err := os.Open(disk)
	must(t, err)
	defer d.Close()
	must(t, unix.Syncfs(int(d.Fd())))
	var st unix.Statfs_t
	must(t, unix.Statfs(disk, &st))
	return int64(st.Bavail) * st.Bsize
}

// countingOpener opens a layer and counts how often it did.
func countingOpener(layer []byte, opened *int) layerstore.Opener {
	return func(context.Context) (io.ReadCloser, error) {
		*opened++
		return io.NopCloser(bytes.NewReader(layer)), nil
	}
}

// TestDiskFullDuringImport: a layer that does not fit says so and takes nothing; when there is room the same pull works.
func TestDiskFullDuringImport(t *testing.T) {
	for _, syncAfter := range []bool{false, true} {
		t.Run(fmt.Sprint("sync after ", syncAfter), func(t *testing.T) {
			disk := smallDisk(t, 64<<20)
			opts := immediate(filepath.Join(disk, "root"))
			opts.Layers.SyncAfter = syncAfter
			s := start(t, opts)
			t.Cleanup(func() { unmountBelow(t, s.root) })
			filler := filepath.Join(disk, "filler")
			must(t, os.WriteFile(filler, []byte(noise(t, 36<<20, 0)), 0o600))
			content := noise(t, 24<<20, 1)
			layer := tarOf(t, "file", content)
			before := freeBytes(t, disk)

			opened := 0
			_, _, err := s.layers.Import(t.Context(), digest.FromBytes(layer), countingOpener(layer, &opened))
			wantFull(t, "import", err)
			if msg := fmt.Sprint(err); !strings.Contains(msg, digest.FromBytes(layer).String()) || !strings.Contains(msg, "remove images") {
				t.Errorf("the message does not name the layer and what to do: %v", err)
			}
			if opened != 1 {
				t.Errorf("the layer was opened %d times", opened)
			}
			for _, dir := range []string{"layers", "removing"} {
				if left := list(filepath.Join(s.root, dir)); len(left) > 0 {
					t.Errorf("left in %s: %v", dir, left)
				}
			}
			if after := freeBytes(t, disk); after < before-64<<10 {
				t.Errorf("%d bytes were free before and %d after", before, after)
			}

			must(t, os.Remove(filler))
			pull(t, s, "image", "", "file", content)
			mounts, err := s.View(t.Context(), "view", "image")
			t.Run("read", func(t *testing.T) { wantContent(t, filepath.Join(mounted(t, mounts, err), "file"), content) })
		})
	}
}

// TestImportEvictsKeptLayers: what is kept for reuse does not stand in the way of what is wanted now.
func TestImportEvictsKeptLayers(t *testing.T) {
	disk := smallDisk(t, 64<<20)
	s := start(t, keepingOn(disk, 64<<20))
	t.Cleanup(func() { unmountBelow(t, s.root) })
	for i := range 3 {
		name := fmt.Sprint(i)
		pull(t, s, name, "", "file", noise(t, 6<<20, byte(i)))
		if i > 0 {
			must(t, s.Remove(t.Context(), name))
		}
	}
	must(t, s.Cleanup(t.Context()))
	if got := len(s.layers.List()); got != 3 {
		t.Fatalf("%d layers, want 3", got)
	}
	large := tarOf(t, "file", noise(t, 44<<20, 7))
	opened := 0
	inst, pin, err := s.layers.Import(t.Context(), digest.FromBytes(large), countingOpener(large, &opened))
	must(t, err)
	defer pin.Release()
	if opened != 2 || s.Evictions() != 2 || len(s.layers.List()) != 2 {
		t.Errorf("opened %d times, %d evictions, %d layers; want 2, 2, 2", opened, s.Evictions(), len(s.layers.List()))
	}
	_, _, err = s.layers.Import(t.Context(), digest.FromString("another"), countingOpener(tarOf(t, "file", noise(t, 44<<20, 8)), &opened))
	wantFull(t, "import with nothing to evict", err)
	if opened != 3 {
		t.Errorf("opened %d times", opened-2)
	}
	if _, err := s.layers.Get(inst.ID); err != nil {
		t.Error(err)
	}
}
