package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// dialTimeout bounds the wait for everything that is held. The keeper may first have to kill a former daemon that hangs.
const dialTimeout = leaveGrace + killWait + 2*handOutTimeout

// callTimeout bounds a request: the keeper does nothing that takes time meanwhile.
const callTimeout = 2 * ioTimeout

// ErrSuperseded is why a connection ended when another daemon has dialed: this process must stop reading groups, and is killed if it does
// not within seconds.
var ErrSuperseded = errors.New("another daemon has taken over")

// Client is a daemon's connection to its keeper. Safe for concurrent use. It has a goroutine of its own until Close or Release.
type Client struct {
	conn    *conn
	devices bool // the keeper can hold one
	ended   sync.WaitGroup
	done    chan struct{}

	mu      sync.Mutex
	err     error // why done is closed
	lastID  uint32
	waiting map[uint32]chan message // for answers

	sending sync.Mutex
}

// Dial connects to the keeper at address and takes the role of the daemon: when it returns, no other process reads any group that is held.
// held is everything that the keeper holds, secret what it was given last, or nil. All of that is the caller's to close; they are
// duplicates. A device that is held is not among it: see Client.Device.
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

func dialClient(ctx context.Context, address string, as role) (*Client, *handout, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, in, err := dial(ctx, address, as)
	if err != nil {
		return nil, nil, fmt.Errorf("keeper at %s: %w", address, err)
	}
	c := &Client{conn: conn, devices: in.report.Devices, done: make(chan struct{}), waiting: map[uint32]chan message{}}
	c.ended.Go(c.receive)
	return c, in, nil
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

// Release tells the keeper that this process has stopped reading groups, and the device, of whose objects it has no descriptors any more, so
// that nobody has to wait for its end, and closes the connection.
// It is right also when Done is closed by ErrSuperseded.
func (c *Client) Release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
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
	answer, err := c.ask(ctx, m)
	closeAll(answer.files) // an ack has none
	return err
}

// ask sends a request and waits for its answer. An ack with an error is one.
func (c *Client) ask(ctx context.Context, m message) (message, error) {
	if err := m.checkSendable(); err != nil {
		return message{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
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
		select {
		case late := <-answer:
			closeAll(late.files)
		default:
		}
	}()

	c.sending.Lock()
	err := c.conn.sendNow(ctx, m)
	c.sending.Unlock()
	if err != nil {
		return message{}, err
	}
	select {
	case a := <-answer:
		return checked(a)
	case <-ctx.Done():
		return message{}, fmt.Errorf("no answer of the keeper: %w", context.Cause(ctx))
	case <-c.done:
	}
	select {
	case a := <-answer: // it came before the end, and a select takes either
		return checked(a)
	default:
		return message{}, fmt.Errorf("the connection ended: %w", c.Err())
	}
}

// checked is an answer, or the error that it is.
func checked(a message) (message, error) {
	if a.kind == ack && len(a.body) > 0 {
		return message{}, &refusal{string(a.body)}
	}
	return a, nil
}

// receive hands out answers until the connection ends.
func (c *Client) receive() {
	defer close(c.done)
	superseded := false
	for {
		m, err := c.conn.receive(time.Time{})
		if err == nil && m.kind != ack && m.kind != device && m.kind != leave {
			closeAll(m.files)
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
		if answer := c.waiting[m.id]; m.kind != leave && answer != nil {
			answer <- m // has room for the only one
			delete(c.waiting, m.id)
		} else {
			closeAll(m.files) // nobody waits any more
		}
		c.mu.Unlock()
	}
}
