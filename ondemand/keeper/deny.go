package keeper

import (
	"context"
	"maps"
	"runtime/debug"
	"sync"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/fanotify"
)

// refuser answers all events of one group with EIO. *fanotify.Group is one.
type refuser interface {
	Deny(ctx context.Context) (denied int, err error)
	Stats() fanotify.Stats
	Close() error
}

// denial is the time in which the keeper answers.
type denial struct {
	stop   context.CancelFunc
	groups sync.WaitGroup

	mu     sync.Mutex
	ended  int64
	active map[refuser]struct{}
}

// denied is how many events have been answered. It is 0 for a nil denial.
func (d *denial) denied() int64 {
	if d == nil {
		return 0
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.ended
	for r := range d.active {
		n += int64(r.Stats().Failed)
	}
	return n
}

// startDenying has this process answer for everything that is held, if nobody else does.
func (s *server) startDenying() error {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.mu.Lock()
	forsaken := s.forsaken() && !s.isReplaced()
	s.mu.Unlock()
	if !forsaken { // a daemon was quicker
		return nil
	}
	if err := s.retire(process{}, 0); err != nil {
		return err
	}
	d := &denial{active: map[refuser]struct{}{}}
	ctx, stop := context.WithCancel(s.ctx)
	d.stop = stop
	s.mu.Lock()
	s.denial = d
	held := maps.Clone(s.held) // does not change until a daemon comes
	away := time.Since(s.away)
	s.mu.Unlock()
	s.log.Error("no daemon: readers of missing data get I/O errors from now on", "held", len(held), "away", away.Round(time.Second))
	for name, e := range held {
		d.groups.Go(func() { s.denyAll(ctx, d, name, e) })
	}
	return nil
}

// stopDenying returns when this process answers no more. It is called with turn held.
func (s *server) stopDenying() {
	s.mu.Lock()
	d := s.denial
	s.mu.Unlock()
	if d == nil {
		return
	}
	d.stop()
	d.groups.Wait() // each answers what it has read, which takes no time
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denial, s.grown = nil, true
	s.wake()
	n := d.denied()
	s.denied += n
	s.log.Info("readers of missing data are not refused any more", "denied", n)
}

// shrink gives back the memory of a denial, which is several times what the keeper needs otherwise.
func (s *server) shrink() {
	s.mu.Lock()
	grown := s.grown
	s.grown = false
	s.mu.Unlock()
	if grown {
		debug.FreeOSMemory()
	}
}

// denyAll answers for one group until ctx ends. While it cannot, its readers wait.
func (s *server) denyAll(ctx context.Context, d *denial, name string, e entry) {
	said := ""
	for {
		err := s.denyOnce(ctx, d, name, e)
		if ctx.Err() != nil {
			return
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			s.log.Error("readers of missing data wait: nobody can answer", "name", name, "cause", err)
		}
		if sleep(ctx, retryWait) != nil {
			return
		}
	}
}

func (s *server) denyOnce(ctx context.Context, d *denial, name string, e entry) error {
	r, err := s.adopt(name, e)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.active[r] = struct{}{}
	d.mu.Unlock()
	n, err := r.Deny(ctx)
	d.mu.Lock()
	delete(d.active, r)
	d.ended += int64(n)
	d.mu.Unlock()
	if closeErr := r.Close(); err == nil {
		err = closeErr
	}
	return err
}

// adopted is a fanotify group with the data that it watches.
type adopted struct {
	*fanotify.Group
	data interface{ Close() error }
}

func (a adopted) Close() error {
	err := a.Group.Close()
	if dataErr := a.data.Close(); err == nil {
		err = dataErr
	}
	return err
}

// adoptGroup makes duplicates, so that what is held stays as it is. Descriptors that are only held are plain numbers: a file that may be
// waited for is in the runtime's poller, and each event of a group that the daemon answers would wake this process.
func adoptGroup(name string, e entry) (refuser, error) {
	group, err := duplicate(e.files[0], "fanotify group of "+name)
	if err != nil {
		return nil, err
	}
	data, err := duplicate(e.files[1], "data blob of "+name)
	if err != nil {
		group.Close()
		return nil, err
	}
	journal, err := duplicate(e.files[2], "journal of "+name)
	if err != nil {
		group.Close()
		data.Close()
		return nil, err
	}
	g, err := fanotify.Adopt(group, journal, data)
	if err != nil {
		data.Close()
		return nil, err
	}
	return adopted{Group: g, data: data}, nil
}
