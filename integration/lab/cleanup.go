package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A lab's directory has a lock file that its owner keeps locked, so that others see whether the owner is alive. Its path is at most
// dirLimit bytes long: a shim's socket is DIR/s/ and 64 digits, and the address of a unix socket has 107 bytes.
const (
	dirPrefix = "eslab-"
	dirLimit  = 39
	lockName  = "owner"
)

// makeDir makes the directory of a lab.
func makeDir(parent string) (dir string, lock *os.File, err error) {
	dir, err = os.MkdirTemp(parent, dirPrefix)
	if err != nil {
		return "", nil, err
	}
	if len(dir) > dirLimit {
		err := fmt.Errorf("directory %s is longer than %d characters: sockets below it would not fit, set Options.Dir or TMPDIR", dir, dirLimit)
		return "", nil, errors.Join(err, os.Remove(dir))
	}
	if lock, err = lockOwner(dir); err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	return dir, lock, nil
}

// lockOwner gives the lock file its name when it is locked: a lock file that is not locked means an abandoned lab.
func lockOwner(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	lock, err := os.Create(path + ".new")
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), lock.Close())
	}
	return lock, os.Rename(lock.Name(), path)
}

// Mounts returns the mountpoints below a directory of the lab ("" for all of them), innermost last.
func (l *Lab) Mounts(dir string) ([]string, error) { return mountsBelow(filepath.Join(l.Dir, dir)) }

// UnmountAll detaches everything that is mounted below a directory of the lab, the last mount first.
func (l *Lab) UnmountAll(dir string) error { return unmountBelow(filepath.Join(l.Dir, dir)) }

func mountsBelow(dir string) ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		// Fields: id, parent, device, root, mountpoint. A lab's paths hold no character that is escaped there.
		if f := strings.Fields(line); len(f) > 4 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
			points = append(points, f[4])
		}
	}
	return points, nil
}

func unmountBelow(dir string) error {
	points, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range slices.Backward(points) {
		if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

// removeTraces unmounts and deletes what is left of a lab whose processes have ended, inside and outside of its directory.
func removeTraces(dir string) error {
	if err := unmountBelow(dir); err != nil {
		return err
	}
	name := filepath.Base(dir)
	errs := []error{os.RemoveAll("/run/containerd/runc/" + name), removeBridge(dir)}
	for _, pattern := range []string{"/sys/fs/cgroup/" + name, "/sys/fs/cgroup/*/" + name} {
		groups, _ := filepath.Glob(pattern)
		for _, g := range groups {
			errs = append(errs, removeCgroup(g))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

// removeCgroup removes a control group and those below it. Their processes have ended, but a group may be busy for a moment longer.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if err == nil && e.IsDir() {
			err = removeCgroup(filepath.Join(dir, e.Name()))
		}
	}
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(killTimeout); ; time.Sleep(pollInterval) {
		err := unix.Rmdir(dir)
		switch {
		case err == nil, errors.Is(err, unix.ENOENT): // two controllers can be one mount
			return nil
		case !errors.Is(err, unix.EBUSY) || time.Now().After(deadline):
			return fmt.Errorf("remove control group %s: %w", dir, err)
		}
	}
}

func removeBridge(dir string) error {
	bridge := (&Lab{Dir: dir}).bridge()
	if _, err := os.Stat("/sys/class/net/" + bridge); err != nil {
		return nil
	}
	if out, err := exec.Command("ip", "link", "delete", bridge).CombinedOutput(); err != nil {
		return fmt.Errorf("delete bridge %s: %w: %s", bridge, err, out)
	}
	return nil
}

// clearAbandoned removes labs whose owner was killed, with the processes they left running.
func clearAbandoned(parent string) {
	locks, _ := filepath.Glob(filepath.Join(parent, dirPrefix+"*", lockName))
	for _, path := range locks {
		if err := clearIfAbandoned(path); err != nil {
			fmt.Fprintf(os.Stderr, "clear abandoned lab %s: %v\n", filepath.Dir(path), err)
		}
	}
}

func clearIfAbandoned(lockPath string) error {
	lock, err := os.Open(lockPath)
	if errors.Is(err, os.ErrNotExist) {
		return nil // its owner has just closed it
	} else if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil // in use
	}
	dir := filepath.Dir(lockPath)
	// Who starts others goes first: containerd starts a shim to delete what a shim has left that has ended, the daemon another keeper.
	endProcesses(dir, "containerd", daemonName)
	endProcesses(dir, "containerd-shim-runc-v2", "registry", keeperName, stargzProgram)
	return removeTraces(dir)
}
