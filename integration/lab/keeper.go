package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// KeeperAddress is the socket of the keeper: the default for a daemon whose socket is SnapshotterAddress.
func (l *Lab) KeeperAddress() string { return l.path("keeper.sock") }

// StartKeeper starts a keeper with Options.KeeperPatience, as a service manager does, and waits until it answers. It may be called again
// after KillKeeper. Without a call, the daemon starts one.
func (l *Lab) StartKeeper(ctx context.Context) error {
	if l.opts.KeeperPatience <= 0 {
		return errors.New("StartKeeper needs Options.KeeperPatience")
	}
	program, err := l.keeperProgram()
	if err != nil {
		return err
	}
	l.keeper, err = l.startProcess("keeper", program, "--address", l.KeeperAddress(), "--patience", l.opts.KeeperPatience.String())
	if err != nil {
		return err
	}
	return l.keeper.ready(ctx, func(ctx context.Context) error {
		_, err := keeper.Status(ctx, l.KeeperAddress())
		return err
	})
}

// KeeperPID is the process id of the keeper, whoever started it, and 0 if none runs.
func (l *Lab) KeeperPID() (int, error) {
	var found []int
	for pid, args := range processesIn(l.Dir, keeperName) {
		if !slices.Contains(args, "--detach") { // starts one
			found = append(found, pid)
		}
	}
	switch len(found) {
	case 0:
		return 0, nil
	case 1:
		return found[0], nil
	}
	return 0, fmt.Errorf("several keepers run: %d", found)
}

// KillKeeper ends the keeper with SIGKILL, whoever started it. SIGTERM does not end one that holds something. The daemon, if it runs, starts
// another one.
func (l *Lab) KillKeeper() error {
	return killAll(slices.Collect(maps.Keys(processesIn(l.Dir, keeperName))))
}

// KillBoth ends our daemon and the keeper with SIGKILL at the same time. The daemon is first: it would start another keeper.
func (l *Lab) KillBoth() error {
	keeperPID, err := l.KeeperPID()
	if err != nil {
		return err
	}
	pid := l.SnapshotterPID()
	if pid == 0 || keeperPID == 0 {
		return fmt.Errorf("daemon %d, keeper %d: want both to run", pid, keeperPID)
	}
	return errors.Join(killAll([]int{pid, keeperPID}), l.KillSnapshotter())
}
