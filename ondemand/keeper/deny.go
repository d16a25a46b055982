package keeper

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/cachefiles"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/fanotify"
)

// refuser answers with EIO what waits in one group, or for the device.
type refuser interface {
	DenyWaiting(ctx context.Context) (denied int, err error)
	Denied() int64 // so far, by DenyWaiting
	Close() error
}

// deniers is how many groups are answered at a time. It takes microseconds, unless a dying process still has one of them.
const deniers = 8

// denial is the time in which the keeper answers, for all groups or for the device. A group has memory and descriptors of its own only while
// events of it are answered; in between it is a number in poll: so denying for a thousand takes no more memory than holding them. The same
// goes for the device, and descriptors of its objects.
type denial struct {
	log    *slog.Logger
	poll   *poll
	groups []*denied    // and the device is like one
	due    chan *denied // something may wait in it
	stop   context.CancelFunc
	work   sync.WaitGroup

	mu     sync.Mutex
	ended  int64
	active map[refuser]struct{}
}

// denied is a group that the keeper answers, or the device. It belongs to one goroutine at a time.
type denied struct {
	name   string
	fd     int
	adopt  func() (refuser, error)
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
		n += r.Denied()
	}
	return n
}

// startDenying has this process answer for what is held, if nobody else does.
func (s *server) startDenying() error {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.mu.Lock()
	groups, device := s.forsaken()
	connected := s.last != nil && s.last.connected // and does not have the device
	s.mu.Unlock()
	if groups < s.o.Patience && device < s.o.Patience || s.isReplaced() { // a daemon was quicker
		return nil
	}
	if !connected {
		if err := s.retire(process{}, 0); err != nil {
			return err
		}
	}
	if groups >= s.o.Patience {
		if err := s.denyGroups(groups); err != nil {
			return err
		}
	}
	if device >= s.o.Patience {
		return s.startDenyingDevice(device)
	}
	return nil
}

// denyGroups has this process answer for all groups.
func (s *server) denyGroups(away time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	groups := make([]*denied, 0, len(s.held))
	for name, e := range s.held { // does not change until a daemon comes
		groups = append(groups, &denied{name: name, fd: e.files[0], adopt: func() (refuser, error) { return s.adopt(name, e) }})
	}
	d, err := s.deny(groups)
	if err != nil {
		return err
	}
	s.denial = d
	s.log.Error("no daemon: readers of missing data get I/O errors from now on", "held", len(groups), "away", away.Round(time.Second))
	return nil
}

// startDenyingDevice has this process answer for the device, unless a daemon has just asked for it.
func (s *server) startDenyingDevice(away time.Duration) error {
	s.deviceTurn.Lock()
	defer s.deviceTurn.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, device := s.forsaken(); device == attended {
		return nil
	}
	fd := s.device.fd
	d, err := s.deny([]*denied{{name: "/dev/cachefiles", fd: fd, adopt: func() (refuser, error) { return s.adoptDevice(fd) }}})
	if err != nil {
		return err
	}
	s.deviceDenial = d
	s.log.Error("no daemon serves the kernel's cache: readers of missing data get I/O errors from now on", "away", away.Round(time.Second))
	return nil
}

// deny begins a denial.
func (s *server) deny(groups []*denied) (*denial, error) {
	poll, err := newPoll()
	if err != nil {
		return nil, err
	}
	for i, g := range groups {
		g.number = int32(i)
	}
	ctx, stop := context.WithCancel(s.ctx)
	d := &denial{log: s.log, poll: poll, groups: groups, due: make(chan *denied), stop: stop, active: map[refuser]struct{}{}}
	d.work.Go(func() { d.watch(ctx) })
	for range min(deniers, len(groups)) {
		d.work.Go(func() { d.answer(ctx) })
	}
	return d, nil
}

// stopDenying returns when this process answers no more. It is called with turn held.
func (s *server) stopDenying() {
	s.endDenial(&s.denial)
	s.deviceTurn.Lock()
	defer s.deviceTurn.Unlock()
	s.endDenial(&s.deviceDenial)
}

// endDenial ends one, if it is there. It is called with the lock held that goes with it.
func (s *server) endDenial(at **denial) {
	s.mu.Lock()
	d := *at
	s.mu.Unlock()
	if d == nil {
		return
	}
	d.stop()
	d.work.Wait() // each answers what it has read, which takes no time
	d.poll.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	*at = nil
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
	r, err := g.adopt()
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

func (a adopted) Denied() int64 { return int64(a.Stats().Failed) }

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

// deniedDevice answers for a device.
type deniedDevice struct {
	file *os.File
	log  *slog.Logger
	n    atomic.Int64
}

// denyDevice makes a duplicate, as adoptGroup does.
func (s *server) denyDevice(fd int) (refuser, error) {
	file, err := duplicate(fd, "device of the cache")
	if err != nil {
		return nil, err
	}
	return &deniedDevice{file: file, log: s.log}, nil
}

func (d *deniedDevice) DenyWaiting(ctx context.Context) (int, error) {
	err := cachefiles.Deny(ctx, d.file, &d.n, d.log)
	return int(d.n.Load()), err
}

func (d *deniedDevice) Denied() int64 { return d.n.Load() }

func (d *deniedDevice) Close() error { return nil } // the file has been closed by Deny
