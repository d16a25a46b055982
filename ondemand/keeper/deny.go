package keeper

import (
	"context"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/fanotify"
)

// refuser answers with EIO what waits in one group. *fanotify.Group is one.
type refuser interface {
	DenyWaiting(ctx context.Context) (denied int, err error)
	Stats() fanotify.Stats
	Close() error
}

// deniers is how many groups are answered at a time. It takes microseconds, unless a dying process still has one of them.
const deniers = 8

// denial is the time in which the keeper answers. A group has memory and descriptors of its own only while events of it are answered; in
// between it is a number in poll: so denying for a thousand takes no more memory than holding them.
type denial struct {
	adopt  func(string, entry) (refuser, error)
	log    *slog.Logger
	poll   *poll
	groups []*denied
	due    chan *denied // something may wait in it
	stop   context.CancelFunc
	work   sync.WaitGroup

	mu     sync.Mutex
	ended  int64
	active map[refuser]struct{}
}

// denied is a group that the keeper answers. It belongs to one goroutine at a time.
type denied struct {
	entry
	name   string
	number int32 // in denial.groups
	polled bool
	said   string // the last error
}

// count is how many events have been answered. It is 0 for a nil denial.
func (d *denial) count() int64 {
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
	poll, err := newPoll()
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(s.ctx)
	d := &denial{
		adopt: s.adopt, log: s.log, poll: poll, due: make(chan *denied), stop: stop, active: map[refuser]struct{}{},
	}
	s.mu.Lock()
	s.denial = d
	for name, e := range s.held { // does not change until a daemon comes
		d.groups = append(d.groups, &denied{entry: e, name: name, number: int32(len(d.groups))})
	}
	away := time.Since(s.away)
	s.mu.Unlock()
	s.log.Error("no daemon: readers of missing data get I/O errors from now on", "held", len(d.groups), "away", away.Round(time.Second))
	d.work.Go(func() { d.watch(ctx) })
	for range deniers {
		d.work.Go(func() { d.answer(ctx) })
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
	d.work.Wait() // each answers what it has read, which takes no time
	d.poll.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denial = nil
	n := d.count()
	s.denied += n
	s.log.Info("readers of missing data are not refused any more", "denied", n)
}

// watch has every group looked at once, for what a daemon has left, and then those in which something waits, until ctx ends.
func (d *denial) watch(ctx context.Context) {
	for _, g := range d.groups {
		d.hand(ctx, g)
	}
	debug.FreeOSMemory() // what looking at all of them has taken
	defer context.AfterFunc(ctx, d.poll.interrupt)()
	for ctx.Err() == nil {
		numbers, err := d.poll.wait()
		if err != nil && ctx.Err() == nil {
			d.log.Error("readers of missing data wait: what comes cannot be seen", "cause", err)
			_ = sleep(ctx, retryWait)
		}
		for _, n := range numbers {
			d.hand(ctx, d.groups[n])
		}
	}
}

// hand gives a group to a goroutine that has none.
func (d *denial) hand(ctx context.Context, g *denied) {
	select {
	case d.due <- g:
	case <-ctx.Done():
	}
}

// answer answers for groups until ctx ends. While it cannot, their readers wait.
func (d *denial) answer(ctx context.Context) {
	for {
		var g *denied
		select {
		case g = <-d.due:
		case <-ctx.Done():
			return
		}
		err := d.denyOnce(ctx, g)
		if err == nil {
			err = d.poll.arm(g)
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		if err.Error() != g.said {
			g.said = err.Error()
			d.log.Error("readers of missing data wait: nobody can answer", "name", g.name, "cause", err)
		}
		d.work.Go(func() {
			_ = sleep(ctx, retryWait)
			d.hand(ctx, g)
		})
	}
}

// denyOnce answers what waits in a group.
func (d *denial) denyOnce(ctx context.Context, g *denied) error {
	r, err := d.adopt(g.name, g.entry)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.active[r] = struct{}{}
	d.mu.Unlock()
	n, err := r.DenyWaiting(ctx)
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
