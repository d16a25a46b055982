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

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// smallDisk mounts an ext4 of 16 MiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.EROFS, testenv.Tool("mkfs.ext4"))
	dir := t.TempDir()
	image, disk := filepath.Join(dir, "image"), filepath.Join(dir, "disk")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 16<<20))
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
	disk := smallDisk(t)
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
	disk := smallDisk(t)
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
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%s on a full disk: %v", what, err)
	}
}
