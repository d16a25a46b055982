package blob

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// syncDelay is how long an extent waits for others to be synced with. It bounds what is fetched again after the daemon died, and a
	// blob that is filled without a pause costs the disk no more than a sync of data and one of the record in this time.
	syncDelay = time.Second
	// syncBytes is how much may wait: half a second of a slow disk.
	syncBytes = 32 << 20
	// retryDelay is when a flush is tried again that failed.
	retryDelay = 30 * time.Second
)

// Syncer flushes the blobs that name it in their Options some time after they were written to, one at a time: they share a disk.
type Syncer struct {
	failed func(*Blob, error)
	wake   chan struct{}

	mu  sync.Mutex
	due map[*Blob]time.Time // of the blobs that have something to flush
}

// NewSyncer makes a Syncer that calls failed with every flush that failed. Those of the record are tried again.
func NewSyncer(failed func(*Blob, error)) *Syncer {
	return &Syncer{failed: failed, wake: make(chan struct{}, 1), due: map[*Blob]time.Time{}}
}

// Run flushes until ctx ends, then flushes once what is left, and returns. It may be called once.
func (s *Syncer) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			for _, b := range s.all() {
				s.flush(b)
			}
			return
		case <-s.wake:
		case <-timer.C:
		}
		b, wait := s.next()
		if b != nil {
			s.flush(b)
		}
		timer.Reset(wait)
	}
}

// next takes the blob that has been due for the longest time, if any, and says how long there is nothing to do then.
func (s *Syncer) next() (first *Blob, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for b, at := range s.due {
		if first == nil || at.Before(s.due[first]) {
			first = b
		}
	}
	if first == nil {
		return nil, retryDelay
	}
	if wait := time.Until(s.due[first]); wait > 0 {
		return nil, wait
	}
	delete(s.due, first)
	return first, 0
}

// all takes all blobs, due or not.
func (s *Syncer) all() []*Blob {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := slices.Collect(maps.Keys(s.due))
	clear(s.due)
	return list
}

func (s *Syncer) flush(b *Blob) {
	err := b.Flush()
	if err == nil {
		return
	}
	s.failed(b, err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.due[b] = time.Now().Add(retryDelay)
}

// note is called with b.mu held when b has got something to flush; unsynced is how many bytes that is now.
func (s *Syncer) note(b *Blob, unsynced int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	at := now.Add(syncDelay)
	if unsynced >= syncBytes {
		at = now
	}
	if due, waits := s.due[b]; waits {
		failed := due.Sub(now) > syncDelay // and is not to be tried again with every write
		if failed || !at.Before(due) {
			return
		}
	}
	s.due[b] = at
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// drop forgets b, which is closed.
func (s *Syncer) drop(b *Blob) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.due, b)
}
