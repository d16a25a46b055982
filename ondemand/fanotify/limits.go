package fanotify

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	groupsSysctl = "fs.fanotify.max_user_groups"
	groupsFile   = "/proc/sys/fs/fanotify/max_user_groups"
	nrOpenFile   = "/proc/sys/fs/nr_open"

	// spareGroups are for the other users of fanotify that run as root, such as virus scanners: 128 is all they have by default.
	spareGroups = 128
	spareFiles  = 4096
)

// FilesPerGroup is how many open files RaiseLimits reckons with for each group: the group, its journal, the journal's lock, and the four files
// of the layer that it watches, with room for the descriptors of events.
const FilesPerGroup = 8

// RaiseLimits has the kernel allow that many groups, with the open files that go with them. Nothing is lowered. The number of marks needs
// no raising, because the groups are made with FAN_UNLIMITED_MARKS.
func RaiseLimits(groups int) error {
	if err := raiseGroups(groups + spareGroups); err != nil {
		return fmt.Errorf("raise sysctl %s to %d: %w", groupsSysctl, groups+spareGroups, err)
	}
	if err := raiseFiles(uint64(groups)*FilesPerGroup + spareFiles); err != nil {
		return fmt.Errorf("raise the limit of open files for %d groups: %w", groups, err)
	}
	return nil
}

func raiseGroups(want int) error {
	have, err := readNumber(groupsFile)
	if err != nil {
		return err
	}
	if have >= want {
		return nil
	}
	return os.WriteFile(groupsFile, []byte(strconv.Itoa(want)), 0)
}

// raiseFiles raises the soft limit as far as it goes, and the hard one if that is too low.
func raiseFiles(want uint64) error {
	var have unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &have); err != nil {
		return err
	}
	if have.Cur < have.Max {
		have.Cur = have.Max
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &have); err != nil {
			return err
		}
	}
	if have.Max >= want {
		return nil
	}
	most, err := readNumber(nrOpenFile)
	if err != nil {
		return err
	}
	if uint64(most) < want {
		return fmt.Errorf("%d needed, the system allows %d (raise sysctl fs.nr_open)", want, most)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: want, Max: want}); err != nil {
		return fmt.Errorf("from %d to %d: %w (set LimitNOFILE= in the unit)", have.Max, want, err)
	}
	return nil
}

func readNumber(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}
