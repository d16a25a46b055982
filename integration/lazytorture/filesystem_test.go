package lazytorture

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// mkfs is how filesystems are made in a file. None discards blocks or does work after the mount that could be done at once.
var mkfs = map[string][]string{
	"ext4":  {"mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"},
	"xfs":   {"mkfs.xfs", "-q", "-f", "-K"},
	"btrfs": {"mkfs.btrfs", "-q", "-f", "-K"},
}

// filesystemBytes is several times what a round writes. What is not written takes no room.
const filesystemBytes = 2 << 30

// mountFilesystem makes a filesystem in a file, and mounts it over a loop device, which goes with the mount.
func mountFilesystem(t *testing.T, name string) (dir string) {
	t.Helper()
	testenv.Need(t, testenv.Tool(mkfs[name][0]))
	image := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, filesystemBytes))
	dir = t.TempDir()
	run(t, append(append([]string(nil), mkfs[name]...), image)...)
	run(t, "mount", "-t", name, "-o", "loop,noatime", image, dir)
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

func run(t *testing.T, command ...string) {
	t.Helper()
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v: %s", command, err, out)
	}
}

// unmount waits for the last user of a mount, and detaches it in the end.
func unmount(t *testing.T, dir string) {
	t.Helper()
	for deadline := time.Now().Add(patient / 4); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			t.Errorf("unmount %s: %v", dir, errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH)))
			return
		}
	}
}
