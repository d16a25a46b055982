package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// redialPause is how long a successor may take to answer on the socket.
const redialPause = 20 * time.Millisecond

// errHungUp says that the keeper hung up before it said anything.
var errHungUp = errors.New("the keeper hung up")

// handout is what a keeper sends after hello.
type handout struct {
	report Report
	held   map[string]entry
	names  []string // instead, for an observer
	secret int      // -1 if there is none
	former process
	// socket and lock are a predecessor's; -1 in what a daemon gets.
	socket, lock int
}

// dial connects, says hello and receives what the keeper hands out. Until it returns, ctx bounds every wait.
func dial(ctx context.Context, address string, as role) (*conn, *handout, error) {
	for {
		c, in, err := dialOnce(ctx, address, as)
		// A keeper that has just been replaced ends all connections. Its successor listens on the same socket.
		if !errors.Is(err, errHungUp) || sleep(ctx, redialPause) != nil {
			return c, in, err
		}
	}
}

func dialOnce(ctx context.Context, address string, as role) (*conn, *handout, error) {
	c, err := connect(ctx, address)
	if err != nil {
		return nil, nil, err
	}
	interrupt := context.AfterFunc(ctx, c.interrupt)
	_ = c.sendNow(ctx, helloOf(as)) // when it fails, the connection has ended, and what was received before tells more
	in, err := c.receiveHandout(ctx)
	if !interrupt() {
		err = fmt.Errorf("gave up waiting: %w", context.Cause(ctx))
	}
	if err != nil {
		c.close()
		in.close()
		return nil, nil, err
	}
	return c, in, nil
}

// receiveHandout returns what has arrived even if there is an error.
func (c *conn) receiveHandout(ctx context.Context) (*handout, error) {
	in := &handout{held: map[string]entry{}, secret: -1, former: process{pidfd: -1}, socket: -1, lock: -1}
	m, err := c.expectNow(ctx, welcome, leave)
	if errors.Is(err, io.EOF) {
		return in, errHungUp
	}
	if err != nil {
		return in, err
	}
	if m.kind == leave {
		return in, ErrSuperseded
	}
	if err := json.Unmarshal(m.body, &in.report); err != nil {
		return in, fmt.Errorf("the keeper's report: %w", err)
	}
	for {
		m, err := c.expectNow(ctx, listening, held, named, secret, former, end)
		if err != nil {
			return in, fmt.Errorf("after %d of what is held: %w", len(in.held), err)
		}
		if m.kind == end {
			return in, nil
		}
		if err := in.add(m); err != nil {
			closeAll(m.files)
			return in, err
		}
	}
}

// add takes over the descriptors of m, unless there is an error.
func (in *handout) add(m message) error {
	_, known := in.held[m.name]
	switch {
	case m.kind == held && !known && len(in.held) < MaxHeld:
		in.held[m.name] = entryOf(m)
	case m.kind == named && len(in.names) < MaxHeld:
		in.names = append(in.names, m.name)
	case m.kind == secret && in.secret < 0 && len(m.files) == 0:
	case m.kind == secret && in.secret < 0:
		in.secret = m.files[0]
	case m.kind == former && in.former.pidfd < 0 && len(m.body) == 4:
		in.former = process{pid: pidOf(m.body), pidfd: m.files[0]}
	case m.kind == listening && in.socket < 0:
		in.socket, in.lock = m.files[0], m.files[1]
	default:
		return fmt.Errorf("a second message of kind %d", m.kind)
	}
	return nil
}

// close closes everything that arrived.
func (in *handout) close() {
	if in == nil {
		return
	}
	for _, e := range in.held {
		e.close()
	}
	for _, fd := range []int{in.secret, in.former.pidfd, in.socket, in.lock} {
		if fd >= 0 {
			closeAll([]int{fd})
		}
	}
}

func (in *handout) asHeld() []Held {
	list := make([]Held, 0, len(in.held))
	for name, e := range in.held {
		list = append(list, Held{
			Name: name, Note: e.note,
			Group:   os.NewFile(uintptr(e.files[0]), "fanotify group of "+name),
			Data:    os.NewFile(uintptr(e.files[1]), "data blob of "+name),
			Journal: os.NewFile(uintptr(e.files[2]), "journal of "+name),
		})
	}
	return list
}

func (in *handout) secretFile() *os.File {
	if in.secret < 0 {
		return nil
	}
	return os.NewFile(uintptr(in.secret), "learned credentials")
}
