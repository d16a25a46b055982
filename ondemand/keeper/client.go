package keeper

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// dialTimeout bounds the wait for everything that is held. The keeper may first have to kill a former daemon that hangs.
const dialTimeout = leaveGrace + killWait + 2*handOutTimeout

// redialPause is how long a successor may take to answer on the socket.
const redialPause = 20 * time.Millisecond

// ErrSuperseded is why a connection ended when another daemon has dialed: this process must stop reading groups, and is killed if it does
// not within seconds.
var ErrSuperseded = errors.New("another daemon has taken over")

// Client is a daemon's connection to its keeper. Safe for concurrent use. It has a goroutine of its own until Close or Release.
type Client struct {
	conn  *conn
	ended sync.WaitGroup
	done  chan struct{}

	mu      sync.Mutex
	err     error // why done is closed
	lastID  uint32
	waiting map[uint32]chan message // for acks

	sending sync.Mutex
}

// Dial connects to the keeper at address and takes the role of the daemon: when it returns, no other process reads any group that is held.
// held is everything that the keeper holds, secret what it was given last, or nil. All of that is the caller's to close; they are
// duplicates.
//
// An error that is ENOENT or ECONNREFUSED says that no keeper listens; see Start.
func Dial(ctx context.Context, address string) (c *Client, held []Held, secret *os.File, err error) {
	c, in, err := dialClient(ctx, address, daemon)
	if err != nil {
		return nil, nil, nil, err
	}
	return c, in.asHeld(), in.secretFile(), nil
}

// Redial is Dial for a process that has the role and everything that is held, and has lost its connection. It gets the names of what the
// keeper holds, which are none if it is another keeper that knows nothing, and should hold everything again. It does not take the role from
// another daemon that has come meanwhile: the error is ErrSuperseded then.
func Redial(ctx context.Context, address string) (c *Client, names []string, err error) {
	c, in, err := dialClient(ctx, address, returning)
	if err != nil {
		return nil, nil, err
	}
	return c, in.names, nil
}

// dialClient dials until a keeper says something.
func dialClient(ctx context.Context, address string, as role) (*Client, *handout, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	for {
		conn, in, err := dial(ctx, address, as)
		if err == nil {
			c := &Client{conn: conn, done: make(chan struct{}), waiting: map[uint32]chan message{}}
			c.ended.Go(c.receive)
			return c, in, nil
		}
		// A keeper that has just been replaced ends all connections. Its successor listens on the same socket.
		if !errors.Is(err, errHungUp) || sleep(ctx, redialPause) != nil {
			return nil, nil, fmt.Errorf("keeper at %s: %w", address, err)
		}
	}
}

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
	c, err := connect(ctx, address)
	if err != nil {
		return nil, nil, err
	}
	interrupt := context.AfterFunc(ctx, c.interrupt)
	sent := c.sendNow(ctx, helloOf(as)) // may fail because a refusal is there already
	in, err := c.receiveHandout(ctx)
	if !interrupt() {
		err = fmt.Errorf("gave up waiting: %w", context.Cause(ctx))
	}
	if err != nil && !errors.Is(err, errHungUp) {
		err = cmp.Or(sent, err)
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

// Hold has the keeper hold duplicates of h's descriptors, which stay the caller's. After nil they are held. After an error they may be:
// Drop ends that. To hold again what is held under the same name replaces its note; that it is the same is seen by the journal, and
// something else under a known name is refused: its group would be closed.
func (c *Client) Hold(ctx context.Context, h Held) error {
	m := message{kind: hold, name: h.Name, body: h.Note}
	for _, f := range []*os.File{h.Group, h.Data, h.Journal} {
		fd, err := numberOf(f)
		if err != nil {
			return fmt.Errorf("have the keeper hold %s: %w", h.Name, err)
		}
		m.files = append(m.files, fd)
	}
	if err := c.call(ctx, m); err != nil {
		return fmt.Errorf("have the keeper hold %s: %w", h.Name, err)
	}
	return nil
}

// Drop has the keeper close what it holds under a name. It is no error if that is nothing.
func (c *Client) Drop(ctx context.Context, name string) error {
	if err := c.call(ctx, message{kind: drop, name: name}); err != nil {
		return fmt.Errorf("have the keeper drop %s: %w", name, err)
	}
	return nil
}

// Secret has the keeper hold f, made by Seal, for the next daemon, instead of what it was given before. nil takes it away.
func (c *Client) Secret(ctx context.Context, f *os.File) error {
	m := message{kind: secret}
	if f != nil {
		fd, err := numberOf(f)
		if err != nil {
			return fmt.Errorf("have the keeper hold learned credentials: %w", err)
		}
		m.files = []int{fd}
	}
	if err := c.call(ctx, m); err != nil {
		return fmt.Errorf("have the keeper hold learned credentials: %w", err)
	}
	return nil
}

// Done is closed when the connection has ended. Err tells why. Unless it is ErrSuperseded, this process still has the role for a while, and
// should call Redial and hold everything anew. A process that does not, and lives, is killed when the keeper's patience is over.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns why the connection has ended, and nil before.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Release tells the keeper that this process has stopped reading groups, so that nobody has to wait for its end, and closes the connection.
// It is right also when Done is closed by ErrSuperseded.
func (c *Client) Release(ctx context.Context) error {
	c.sending.Lock()
	err := c.conn.sendNow(ctx, message{kind: released})
	c.sending.Unlock()
	if err == nil {
		select {
		case <-c.done: // the keeper hangs up when it has understood
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if err = errors.Join(err, c.Close()); err != nil {
		return fmt.Errorf("release the keeper: %w", err)
	}
	return nil
}

// Close ends the connection. To the keeper that is the loss of it: this process still has the role; see Done and Release.
func (c *Client) Close() error {
	c.conn.close()
	c.ended.Wait()
	return nil
}

// call sends a request and waits for its ack.
func (c *Client) call(ctx context.Context, m message) error {
	if err := m.checkSendable(); err != nil {
		return err
	}
	answer := make(chan message, 1)
	c.mu.Lock()
	c.lastID++
	m.id = c.lastID
	c.waiting[m.id] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, m.id)
		c.mu.Unlock()
	}()

	c.sending.Lock()
	err := c.conn.sendNow(ctx, m)
	c.sending.Unlock()
	if err != nil {
		return err
	}
	select {
	case a := <-answer:
		if len(a.body) > 0 {
			return &refusal{string(a.body)}
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("no answer of the keeper: %w", context.Cause(ctx))
	case <-c.done:
		return fmt.Errorf("the connection ended: %w", c.Err())
	}
}

// receive hands out acks until the connection ends.
func (c *Client) receive() {
	defer close(c.done)
	superseded := false
	for {
		m, err := c.conn.receive(time.Time{})
		closeAll(m.files) // an ack has none
		if err == nil && m.kind != ack && m.kind != leave {
			err = fmt.Errorf("a message of kind %d out of turn", m.kind)
		}
		c.mu.Lock()
		if err != nil {
			if c.err = err; superseded {
				c.err = ErrSuperseded
			}
			c.mu.Unlock()
			return
		}
		superseded = superseded || m.kind == leave
		if answer := c.waiting[m.id]; m.kind == ack && answer != nil {
			answer <- m // has room for the only one
			delete(c.waiting, m.id)
		}
		c.mu.Unlock()
	}
}
