package fanotify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lockPatience is how long a predecessor may take to die. A killed process with much memory takes a second or two.
	lockPatience = 10 * time.Second
	lockPause    = 5 * time.Millisecond
)

// openLock opens the file that the lock is taken with. A lock of this kind belongs to an open file: the journal's own would keep it when
// the process is dead, for the keeper has a copy of that. This one is given to nobody.
func openLock(journal *os.File) (*os.File, error) {
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", journal.Fd()), os.O_RDWR, 0)
}

// lock makes its owner the only one that answers the journal's group, until unlock or the death of the process. It waits for another owner.
func (j *journal) lock(ctx context.Context) error {
	deadline := time.Now().Add(lockPatience)
	for {
		err := unix.Flock(int(j.own.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("lock the journal: %w", err)
		case time.Now().After(deadline):
			return fmt.Errorf("another process has locked its journal for %v, and answers or has stopped (lslocks names it)", lockPatience)
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (j *journal) unlock() {
	// It fails only for a file that is closed, and then there is no lock.
	_ = unix.Flock(int(j.own.Fd()), unix.LOCK_UN)
}
