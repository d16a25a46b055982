// Package slowproxy makes a server on loopback behave like a distant one: a TCP proxy with a round trip time and a rate at which all
// connections together receive. What the clients send is delayed and not slowed down.
//
//	slow, err := slowproxy.New(registryHost, slowproxy.Options{RoundTrip: 10 * time.Millisecond, BitsPerSecond: 200_000_000})
//
// The link is a model, not a measurement: bytes that arrive at the proxy get the time at which the last of them would leave a link of
// that rate, and are written half a round trip later. Connecting takes one round trip. The target sees that the link is full as soon
// as queueTime of data waits, as with the buffer of a router.
package slowproxy

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// pieceBytes is what is paced as one: 16 KiB are 0.7 ms at 200 Mbit/s, and about 1500 wake-ups per second.
	pieceBytes = 16 << 10
	// burst is how much unused time the link makes up for, so that a proxy that was woken late still reaches its rate.
	burst = 2 * time.Millisecond
	// queueTime is how much data, as time on the link, waits in the proxy before it stops to read.
	queueTime = 20 * time.Millisecond
	// queuePieces bounds the pieces of one connection on their way: enough for 1 Gbit/s over 30 ms.
	queuePieces = 256
)

// Options describe the link.
type Options struct {
	// RoundTrip is the time from a byte sent to the answer of a target that takes no time.
	RoundTrip time.Duration
	// BitsPerSecond is the rate to the clients. Zero is no bound.
	BitsPerSecond int64
}

// Proxy is a running proxy.
type Proxy struct {
	target   string
	opts     Options
	listener net.Listener
	down, up atomic.Int64
	accepted atomic.Int64
	link     link

	ctx    context.Context // ends when the proxy closes
	cancel context.CancelFunc
	work   sync.WaitGroup
}

// New starts a proxy on a free port of 127.0.0.1 in front of a HOST:PORT. Close ends it.
func New(target string, opts Options) (*Proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{target: target, opts: opts, listener: listener, link: link{bitsPerSecond: opts.BitsPerSecond}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.work.Go(p.accept)
	return p, nil
}

// Addr is the proxy's IP:PORT.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Downstream is how many bytes have left the link towards clients, of all connections.
func (p *Proxy) Downstream() int64 { return p.down.Load() }

// Upstream is how many bytes the clients sent.
func (p *Proxy) Upstream() int64 { return p.up.Load() }

// Connections is how many connections there have been.
func (p *Proxy) Connections() int64 { return p.accepted.Load() }

// Close breaks all connections and returns when nothing of the proxy runs any more.
func (p *Proxy) Close() error {
	p.cancel()
	err := p.listener.Close()
	p.work.Wait()
	return err
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		p.accepted.Add(1)
		p.work.Go(func() { p.serve(client) })
	}
}

// serve joins a client to the target until both directions have ended or the proxy closes.
func (p *Proxy) serve(client net.Conn) {
	defer client.Close()
	if !p.sleepUntil(time.Now().Add(p.opts.RoundTrip)) {
		return
	}
	var d net.Dialer
	server, err := d.DialContext(p.ctx, "tcp", p.target)
	if err != nil {
		return // the client sees a closed connection
	}
	defer server.Close()
	stop := context.AfterFunc(p.ctx, func() {
		client.Close()
		server.Close()
	})
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { p.pipe(server, client, &link{}, &p.up) })
	both.Go(func() { p.pipe(client, server, &p.link, &p.down) })
	both.Wait()
}

// piece is data and the time at which it arrives.
type piece struct {
	data    []byte
	arrives time.Time
}

// pipe carries one direction of a connection over a link.
func (p *Proxy) pipe(to, from net.Conn, over *link, count *atomic.Int64) {
	pieces := make(chan piece, queuePieces)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(pieces)
		for {
			data := make([]byte, pieceBytes)
			n, err := from.Read(data)
			if n > 0 {
				leaves := over.send(n)
				pieces <- piece{data[:n], leaves.Add(p.opts.RoundTrip / 2)}
				p.sleepUntil(leaves.Add(-queueTime))
			}
			if err != nil {
				return
			}
		}
	})
	for piece := range pieces {
		p.sleepUntil(piece.arrives)
		count.Add(int64(len(piece.data))) // before anybody can have received them
		if _, err := to.Write(piece.data); err != nil {
			from.Close() // ends the reader
			break
		}
	}
	for range pieces { // what nobody takes any more
	}
	reader.Wait()
	if t, ok := to.(*net.TCPConn); ok {
		_ = t.CloseWrite() // fails when the connection has ended already
	}
}

// sleepUntil returns false, at once, when the proxy closes.
func (p *Proxy) sleepUntil(at time.Time) bool {
	d := time.Until(at)
	if d <= 0 {
		return p.ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-p.ctx.Done():
		return false
	}
}

// link is one direction of a line. The zero value has no bound.
type link struct {
	bitsPerSecond int64

	mu sync.Mutex
	// free is when the line has carried all that was sent so far.
	free time.Time
}

// send puts bytes on the line and returns when the last of them has left it.
func (l *link) send(bytes int) time.Time {
	now := time.Now()
	if l.bitsPerSecond == 0 {
		return now
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if earliest := now.Add(-burst); l.free.Before(earliest) {
		l.free = earliest
	}
	l.free = l.free.Add(time.Duration(int64(bytes) * 8 * int64(time.Second) / l.bitsPerSecond))
	return l.free
}
