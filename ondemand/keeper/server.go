package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// handOutTimeout bounds the handing out of everything that is held: milliseconds for a thousand blobs.
	handOutTimeout = 20 * time.Second
	// maxSessions bounds connections. There is one daemon, perhaps its successor, and now and then an observer.
	maxSessions = 64
)

// server is the keeper.
type server struct {
	o     Options
	log   *slog.Logger
	grace time.Duration
	// adopt and adoptDevice make who answers for an entry, and for a device. Tests put something else here.
	adopt       func(string, entry) (refuser, error)
	adoptDevice func(fd int) (refuser, error)
	ctx         context.Context // ends when the sessions have to end
	stop        context.CancelFunc
	listener    *listener
	replaced    chan struct{} // closed when a successor has everything
	changed     chan struct{} // has room for one: run has to look at the state again
	sessions    sync.WaitGroup

	// turn is held by who changes the role or has a successor take over: one at a time, for seconds at most. It is taken before mu.
	turn sync.Mutex
	// deviceTurn is held by who gives the device to a daemon, changes it, or begins or ends to answer for it. It is taken after turn, before mu, and
	// not while a session is waited for.
	deviceTurn sync.Mutex

	mu     sync.Mutex
	held   map[string]entry
	secret int         // -1 if there is none
	device deviceEntry // changed with deviceTurn held, too
	last   *tenant     // who has or had the role; nil if nobody is known who may read groups
	away   time.Time   // since when no daemon is connected, if none is
	// deviceAway is since when no daemon is connected that has the device, if none is.
	deviceAway   time.Time
	denial       *denial // nil unless this process answers for groups; changed with turn held, too
	deviceDenial *denial // nil unless this process answers for the device; changed with deviceTurn held, too
	denied       int64   // by denials that have ended
	ending       bool    // the signal has come
	over         bool    // nothing is held any more
	answering    int     // requests of daemons that have no answer yet
	open         map[*conn]struct{}
}

// tenant is a daemon that was given the role.
type tenant struct {
	process
	session   *session // nil if it was another keeper's
	connected bool     // guarded by server.mu
	device    bool     // it has the device, or may have it: it has asked for it, or held it; guarded by server.mu
}

// entry is what is held under one name.
type entry struct {
	note  []byte
	files [3]int // group, data, journal
}

func entryOf(m message) entry { return entry{note: m.body, files: [3]int(m.files)} }

func (e entry) close() { closeAll(e.files[:]) }

// is tells whether both hold the same group. A group and its journal are made together, and the journal has an identity that can be seen.
func (e entry) is(other entry) bool {
	var a, b unix.Stat_t
	return unix.Fstat(e.files[2], &a) == nil && unix.Fstat(other.files[2], &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino
}

// Serve runs a keeper.
//
// When ctx ends, Serve does not return while it holds anything: a hole would be readable, or with the device what is mounted over it fail. It
// goes on as before, and returns when the last has been dropped, when a successor has taken over, or when the machine is going down and no
// other process is left that could read.
func Serve(ctx context.Context, o Options) error {
	o = o.withDefaults()
	s, err := start(ctx, o)
	if err != nil {
		return fmt.Errorf("keeper at %s: %w", o.Address, err)
	}
	o.Log.Info("keeping", "address", o.Address, "version", o.Version, "patience", o.Patience, "held", len(s.held), "device", s.device.held())
	o.Ready()
	s.run(ctx)
	return nil
}

// start listens, with what a predecessor has held if there is one to be replaced.
func start(ctx context.Context, o Options) (*server, error) {
	s := &server{
		o: o, log: o.Log, grace: leaveGrace, adopt: adoptGroup,
		replaced: make(chan struct{}), changed: make(chan struct{}, 1),
		held: map[string]entry{}, secret: -1, device: noDevice, away: time.Now(), deviceAway: time.Now(), open: map[*conn]struct{}{},
	}
	s.adoptDevice = s.denyDevice
	s.ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx)) // a signal does not end it
	if o.Replace {
		if err := s.succeed(ctx); err != nil {
			s.stop()
			return nil, err
		}
	}
	if s.listener == nil {
		var err error
		if s.listener, err = listen(o.Address); err != nil {
			s.stop()
			return nil, err
		}
	}
	s.changed <- struct{}{}
	return s, nil
}

// letGo closes everything: a successor has it, or there is nothing.
func (s *server) letGo() {
	for _, e := range s.held {
		e.close()
	}
	clear(s.held)
	s.setSecret(-1)
	closeAll(s.device.files())
	s.device = noDevice
	if s.last != nil {
		s.last.close()
		s.last = nil
	}
}

// run is the life of the keeper.
func (s *server) run(ctx context.Context) {
	var accepting sync.WaitGroup
	accepting.Go(s.accept)
	s.watch(ctx)

	if !s.isReplaced() {
		s.listener.remove()
	}
	s.listener.close()
	accepting.Wait()
	s.stop()
	s.mu.Lock()
	for c := range s.open {
		c.stopReceiving()
	}
	s.mu.Unlock()
	s.sessions.Wait()
	s.turn.Lock()
	defer s.turn.Unlock()
	s.stopDenying()
	s.letGo()
}

// accept makes sessions until the listener is closed.
func (s *server) accept() {
	for {
		c, err := s.listener.accept()
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil:
			s.log.Error("a connection cannot be accepted", "cause", err)
			time.Sleep(100 * time.Millisecond) // for want of descriptors or memory; both come back
		default:
			s.begin(c)
		}
	}
}

// begin serves a connection, unless there are too many.
func (s *server) begin(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.open) >= maxSessions {
		s.log.Warn("a connection is refused: there are too many")
		c.close()
		return
	}
	s.open[c] = struct{}{}
	s.sessions.Go(func() {
		s.serve(c)
		s.mu.Lock()
		delete(s.open, c)
		s.mu.Unlock()
		c.close()
	})
}

// wake has run look at the state again.
func (s *server) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *server) isReplaced() bool {
	select {
	case <-s.replaced:
		return true
	default:
		return false
	}
}

// names returns those of everything that is held.
func (s *server) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.held))
}

// report is what observers are told.
func (s *server) report() Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := Report{
		PID: os.Getpid(), Version: s.o.Version, State: Away, Patience: s.o.Patience,
		Denied: s.denied + s.denial.count() + s.deviceDenial.count(), Ending: s.ending, Secret: s.secret >= 0,
		Devices: true, Device: s.deviceState(),
	}
	if s.last != nil && !s.last.hasLeft() {
		r.DaemonPID = s.last.pid
	}
	switch {
	case s.last != nil && s.last.connected:
		r.State = Served
		return r
	case s.denial != nil:
		r.State = Denying
	}
	r.Away = time.Since(s.away)
	return r
}

// deviceState is who answers for the device; "" if none is held. It is called with mu held.
func (s *server) deviceState() State {
	switch {
	case !s.device.held():
		return ""
	case s.last != nil && s.last.connected && s.last.device:
		return Served
	case s.deviceDenial != nil:
		return Denying
	}
	return Away
}

// setSecret holds another sealed memfd, or with -1 none. It is called with mu held, or when nobody else is there.
func (s *server) setSecret(fd int) {
	if s.secret >= 0 {
		closeAll([]int{s.secret})
	}
	s.secret = fd
}
