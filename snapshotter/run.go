package snapshotter

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Run does what no call waits for: it converts directory instances and collects garbage. It returns nil when ctx has ended and
// the last of its goroutines too. Without it the snapshotter works; directories stay, and only Cleanup deletes.
func (s *Snapshotter) Run(ctx context.Context) error {
	var running sync.WaitGroup
	running.Go(func() { s.convertDirectories(ctx) })
	running.Go(func() { s.collectGarbage(ctx) })
	running.Wait()
	return nil
}

// collectGarbage collects when something was removed, when a grace ends, and every collectEvery, until ctx ends.
func (s *Snapshotter) collectGarbage(ctx context.Context) {
	for ctx.Err() == nil {
		next, err := s.collect(ctx)
		if err != nil && !errors.Is(err, context.Canceled) {
			s.log.Warn("collection left something for the next one", "cause", err)
		}
		select {
		case <-ctx.Done():
		case <-s.wakeCollect:
		case <-time.After(next):
		}
	}
}
