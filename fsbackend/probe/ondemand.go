package probe

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountapi"
)

// HavePreContent reports whether fanotify can hold a read of a file in dir until its data is there (FAN_PRE_ACCESS).
// Linux 7.2 and later set a taint flag on the first such mark, so do not ask without need.
func HavePreContent(dir string) error {
	const needs = "needs Linux 6.14 with CONFIG_FANOTIFY_ACCESS_PERMISSIONS, and a directory on ext4, xfs or btrfs"
	s, err := newScratch(dir)
	if err != nil {
		return answer("fanotify pre-content", needs, err)
	}
	defer s.close()
	return answer("fanotify pre-content", needs, tryPreContent(s))
}

// tryPreContent marks a file. Older kernels have groups of this class too; only the mark tells.
func tryPreContent(s *scratch) error {
	f, err := s.file("marked", nil)
	if err != nil {
		return err
	}
	defer f.Close()
	group, err := unix.FanotifyInit(unix.FAN_CLASS_PRE_CONTENT|unix.FAN_CLOEXEC, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE)
	if err != nil {
		return fmt.Errorf("fanotify_init: %w", err)
	}
	defer unix.Close(group)
	if err := unix.FanotifyMark(group, unix.FAN_MARK_ADD, unix.FAN_PRE_ACCESS, int(f.Fd()), ""); err != nil {
		return fmt.Errorf("fanotify_mark: %w", err)
	}
	return nil
}

// HaveFscache reports whether EROFS can be mounted over fscache with on-demand reading (Linux 6.1 to 7.1, where it is enabled),
// with cache files that mounts share (domain_id).
// The device /dev/cachefiles may still be taken by another daemon: it has one user on a host.
func HaveFscache() error {
	if err := HaveEROFS(); err != nil {
		return err
	}
	return answer("EROFS over fscache", "needs Linux 6.1 to 7.1 with CONFIG_EROFS_FS_ONDEMAND and CONFIG_CACHEFILES_ONDEMAND", tryFscache())
}

func tryFscache() error {
	c, err := mountapi.Open("erofs")
	if err != nil {
		return err
	}
	defer c.Close()
	for _, option := range []string{"fsid", "domain_id"} {
		if err := c.Set(option, "probe"); err != nil {
			return err
		}
	}
	_, err = os.Stat("/dev/cachefiles")
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: no /dev/cachefiles (try modprobe cachefiles)", ErrNotSupported)
	}
	return err
}
