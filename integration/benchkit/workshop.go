package benchkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
)

const (
	// DiskBytes holds the largest image (1.4 GB with its blobs under overlayfs) and leaves ext4 half empty.
	DiskBytes = 4 << 30
	// memoryBytes bounds the tmpfs, with a registry's blobs of 1.2 GB.
	memoryBytes = 2 << 30
	// unmountTimeout is how long the last user of a file system may take to go away.
	unmountTimeout = 10 * time.Second
	// commandTimeout turns a hanging mkfs or mount into an error.
	commandTimeout = 2 * time.Minute
)

// Workshop is the directory in which everything happens, for one benchmark at a time:
//
//	disk      what the ext4 file systems are made in, written once so that no measurement pays for its allocation
//	fs/       where the ext4 of the measurement is mounted
//	mem/      a tmpfs
type Workshop struct {
	dir  string
	lock *os.File // the open directory, locked
}

// Clear ends what a killed benchmark left running in a directory of the workshop, so that it can be unmounted.
type Clear func(ctx context.Context, dir string) error

// OpenWorkshop clears what a killed benchmark left in dir, and makes everything but the file systems of the measurements, which will
// have diskBytes. clear may be nil.
func OpenWorkshop(ctx context.Context, dir string, diskBytes int64, clear Clear) (_ *Workshop, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root, for mounts")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	w := &Workshop{dir: dir}
	if w.lock, err = os.Open(dir); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(w.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w (does another benchmark run?)", dir, err), w.lock.Close())
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	if err := w.clearKilled(ctx, clear); err != nil {
		return nil, err
	}
	for _, d := range []string{w.fs(), w.Memory()} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, err
		}
	}
	if err := unix.Mount("erofs-bench", w.Memory(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%d,mode=0700", memoryBytes)); err != nil {
		return nil, fmt.Errorf("mount tmpfs on %s: %w", w.Memory(), err)
	}
	return w, w.fillDisk(ctx, diskBytes)
}

func (w *Workshop) disk() string { return filepath.Join(w.dir, "disk") }
func (w *Workshop) fs() string   { return filepath.Join(w.dir, "fs") }

// Memory is where the tmpfs is mounted.
func (w *Workshop) Memory() string { return filepath.Join(w.dir, "mem") }

// clearKilled removes what a killed benchmark left.
func (w *Workshop) clearKilled(ctx context.Context, clear Clear) error {
	for _, d := range []string{w.fs(), w.Memory()} {
		if left, err := filepath.Glob(filepath.Join(d, "*")); err != nil || len(left) == 0 || clear == nil {
			continue
		}
		if err := clear(ctx, d); err != nil {
			return fmt.Errorf("clear what a killed benchmark left in %s: %w", d, err)
		}
	}
	return w.empty()
}

// empty unmounts and removes everything in the directory.
func (w *Workshop) empty() error {
	points, err := fsbackend.MountsBelow(w.dir)
	if err != nil {
		return err
	}
	for _, p := range slices.Backward(points) {
		if err := fsbackend.Unmount(p); err != nil {
			return err
		}
	}
	for _, path := range []string{w.fs(), w.Memory(), w.disk()} {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// Close unmounts and removes everything.
func (w *Workshop) Close() error {
	err := w.empty()
	if err == nil {
		err = os.Remove(w.dir)
	}
	return errors.Join(err, w.lock.Close())
}

// fillDisk writes the whole file: blocks that are only reserved, or discarded by mkfs, would be slower at their first use.
func (w *Workshop) fillDisk(ctx context.Context, bytes int64) error {
	Progress("write %d MiB to %s", bytes>>20, w.disk())
	f, err := os.OpenFile(w.disk(), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	zeros := make([]byte, 8<<20)
	for written := int64(0); written < bytes; written += int64(len(zeros)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := f.Write(zeros); err != nil {
			return err
		}
	}
	return f.Sync()
}

// WithFreshDisk makes an empty ext4, calls use with its mountpoint, and unmounts it.
func (w *Workshop) WithFreshDisk(ctx context.Context, use func(dir string) error) (err error) {
	switch mounted, err := fsbackend.Mounted(w.fs()); {
	case err != nil:
		return err
	case mounted:
		return fmt.Errorf("the file system of an earlier measurement is still mounted on %s", w.fs())
	}
	// With "lazy" initialization the kernel would write inode tables while we measure.
	if err := command(ctx, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", w.disk()); err != nil {
		return err
	}
	if err := w.mountDisk(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.releaseDisk()) }()
	return use(w.fs())
}

// mountDisk mounts the ext4. Its loop device does direct I/O: a disk has no page cache of its own that takes writes, copies them
// with our processors, and makes a sync write everything at the end.
func (w *Workshop) mountDisk(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "losetup", "--find", "--show", "--direct-io=on", w.disk()).Output()
	if err != nil {
		return fmt.Errorf("loop device for %s: %w", w.disk(), err)
	}
	device := strings.TrimSpace(string(out))
	err = command(ctx, "mount", device, w.fs())
	// Detached now, the device goes when the mount does.
	return errors.Join(err, command(ctx, "losetup", "--detach", device))
}

// releaseDisk unmounts the ext4; its loop device goes with it. The mount is never detached while in use: the next mkfs would write
// below a live file system.
func (w *Workshop) releaseDisk() error {
	for deadline := time.Now().Add(unmountTimeout); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Unmount(w.fs(), unix.UMOUNT_NOFOLLOW)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("unmount %s: %w", w.fs(), err)
		}
	}
}

func command(ctx context.Context, argv ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return nil
}
