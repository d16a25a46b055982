package fanotify

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lockPatience is how long a predecessor may take to die. A killed process with much memory takes a second or two.
	lockPatience = 10 * time.Second
	lockPause    = 5 * time.Millisecond
)

// lock makes this process the only one that answers the journal's group. A lock of this kind belongs to the process, so it goes when the process has
// let go of its descriptors, although the keeper has a copy of this one. The process also loses it by closing any other copy.
func (j *journal) lock(ctx context.Context) error {
	deadline := time.Now().Add(lockPatience)
	for {
		err := unix.FcntlFlock(j.file.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("lock the journal: %w", err)
		case time.Now().After(deadline):
			return fmt.Errorf("process %d answers it, and still does after %v", j.holder(), lockPatience)
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (j *journal) unlock() {
	// It fails only if the journal is closed, and then there is no lock.
	_ = unix.FcntlFlock(j.file.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_UNLCK})
}

// holder is the process that has the lock, or 0.
func (j *journal) holder() int32 {
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(j.file.Fd(), unix.F_GETLK, &l); err != nil || l.Type == unix.F_UNLCK {
		return 0
	}
	return l.Pid
}
