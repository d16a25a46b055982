package snapshotter

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Run does what no call waits for: it makes lost layers again, converts directory instances, collects garbage and deletes it, and reads what
// pulled images start. It returns nil when ctx has ended and the last of its goroutines too. Without it the snapshotter works; directories
// stay, and only Cleanup deletes.
func (s *Snapshotter) Run(ctx context.Context) error {
	var running sync.WaitGroup
	running.Go(func() {
		s.repeat(ctx, "a layer that snapshots miss was not made again yet", s.wakeRestore, s.restoreAll)
	})
	running.Go(func() { s.convertDirectories(ctx) })
	running.Go(func() { s.repeat(ctx, "collection left something for the next one", s.wakeCollect, s.collect) })
	running.Go(func() { s.repeat(ctx, "files not deleted, will be tried again", s.wakeDelete, s.deleteDiscarded) })
	for range startsAtOnce {
		running.Go(func() { s.readPulled(ctx) })
	}
	running.Wait()
	return nil
}

// repeat calls do until ctx ends: again when it is woken, or when the time that do returned is over. The same failure is
// logged once, not each time.
func (s *Snapshotter) repeat(ctx context.Context, failure string, woken <-chan struct{}, do func(context.Context) (time.Duration, error)) {
	var said string
	for ctx.Err() == nil {
		next, err := do(ctx)
		switch {
		case err == nil:
			said = ""
		case !errors.Is(err, context.Canceled) && err.Error() != said:
			said = err.Error()
			s.log.Warn(failure, "cause", err)
		}
		select {
		case <-ctx.Done():
		case <-woken:
		case <-time.After(next):
		}
	}
}

// deleteAgain is how long files that could not be deleted are left alone.
const deleteAgain = time.Minute

func (s *Snapshotter) deleteDiscarded(context.Context) (time.Duration, error) {
	return deleteAgain, s.layers.DeleteDiscarded()
}
