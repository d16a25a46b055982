package lossydisk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// filesystem is how one is made. None discards blocks, which takes time and tells the disk nothing, and none does work after the mount that
// could be done by mkfs.
var filesystems = map[string][]string{
	"ext4":  {"mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"},
	"xfs":   {"mkfs.xfs", "-q", "-f", "-K"},
	"btrfs": {"mkfs.btrfs", "-q", "-f", "-K"},
}

// MinBytes is enough for each of the filesystems: xfs wants the most.
const MinBytes = 320 << 20

// Format makes a filesystem: ext4, xfs or btrfs.
func (dev *Device) Format(ctx context.Context, filesystem string) error {
	mkfs := filesystems[filesystem]
	if mkfs == nil {
		return fmt.Errorf("filesystem %q: this package cannot make it", filesystem)
	}
	_, err := command(ctx, slices.Concat(mkfs, []string{dev.Path})...)
	return err
}

// Mount mounts what Format has made, which replays its journal.
func (dev *Device) Mount(filesystem, dir string) error {
	if err := unix.Mount(dev.Path, dir, filesystem, unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("mount %s of %s on %s: %w", filesystem, dev.Path, dir, err)
	}
	return nil
}

// Unmount waits for the last user of a mount. If that takes too long, it detaches the mount and says so.
func Unmount(dir string) error {
	for deadline := time.Now().Add(detachTimeout); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		if err == nil {
			return nil
		}
		if errors.Is(err, unix.EBUSY) && time.Now().Before(deadline) {
			continue
		}
		return errors.Join(fmt.Errorf("unmount %s: %w", dir, err), unix.Unmount(dir, unix.MNT_DETACH))
	}
}
