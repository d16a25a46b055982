package cachefiles

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"
)

const (
	// quietTime is how long nothing has come when Deny returns: longer than a reader takes to try again, and than an OPEN of what is not
	// known waits for its answer.
	quietTime = 250 * time.Millisecond
	// quietLooks is how often that is looked at meanwhile.
	quietLooks = 10
)

// Deny answers what the kernel asks of a device that nobody serves, for a keeper whose daemon does not come back: cached data can be read, who
// reads missing data gets EIO, and so does who mounts, for a new mount has data that are missing; unmounts go on. An object is opened with
// the size that its Key says; one with another key is not opened.
//
// It begins with what a predecessor has not answered, and returns when nothing has come for a short time, or ctx ends. Then it has no
// descriptor of an object any more, and the keeper may give the device to a daemon, or poll it and deny again when something waits.
// Unless ctx has ended or there is an error, all that was read has been answered. Failed READs are added to denied. file is owned and
// closed.
//
// On a kernel without restore READs of objects that were open fail without being asked.
func Deny(ctx context.Context, file *os.File, denied *atomic.Int64, log *slog.Logger) error {
	d, err := Adopt(file, Options{Lookup: deniedByKey, Log: log})
	if d == nil {
		return err
	}
	defer d.Close()
	if err := d.deny(ctx, denied, err == nil, quietTime); err != nil {
		return fmt.Errorf("deny: %w", err)
	}
	return nil
}

// deny serves until it is quiet. What was read when Serve was about to end may have no answer, and would not be seen by who polls: so it is
// served again then.
func (d *Device) deny(ctx context.Context, denied *atomic.Int64, canRestore bool, quiet time.Duration) error {
	for {
		last, err := d.serveUntilQuiet(ctx, denied, quiet)
		if err != nil || ctx.Err() != nil || d.counts.messages() == last || !canRestore {
			return err
		}
	}
}

// serveUntilQuiet returns how many messages had been read when it was quiet.
func (d *Device) serveUntilQuiet(ctx context.Context, denied *atomic.Int64, quiet time.Duration) (last uint64, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	counted := d.counts.failed.Load()
	count := func() {
		now := d.counts.failed.Load()
		denied.Add(int64(now - counted))
		counted = now
	}
	defer count()
	ended := make(chan error, 1)
	go func() { ended <- d.Serve(ctx) }()
	look := time.NewTicker(quiet / quietLooks)
	defer look.Stop()
	for since := time.Now(); ; {
		select {
		case err := <-ended:
			return last, err
		case <-look.C:
		}
		count()
		if n := d.counts.messages(); n != last || d.busy() {
			last, since = n, time.Now()
		} else if time.Since(since) >= quiet { // only now: to be held up behind the line above is not to be quiet
			stop()
			return last, <-ended
		}
	}
}

// messages is how many were read.
func (c *counters) messages() uint64 {
	return c.opens.Load() + c.closes.Load() + c.reads.Load() + c.garbled.Load() + c.refused.Load()
}

// busy says whether a READ has no answer, or something is to be shown again.
func (d *Device) busy() bool {
	d.mu.Lock()
	s := d.current
	d.mu.Unlock()
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	busy := s.again
	for _, o := range s.objects {
		busy = busy || len(o.reads) > 0
	}
	return busy
}

// deniedByKey is a Lookup.
func deniedByKey(_, cookie string) (Object, error) {
	k, err := ParseKey(cookie)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	return deniedObject(k.Size), nil
}

// deniedObject has a size, and no data.
type deniedObject int64

func (o deniedObject) Size() int64 { return int64(o) }

func (o deniedObject) Fill(context.Context, int64, int64) error { return errDenied }

func (o deniedObject) ReadAt([]byte, int64) (int, error) { return 0, errDenied }
