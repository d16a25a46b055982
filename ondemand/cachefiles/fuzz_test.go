package cachefiles

import (
	"context"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// FuzzServe plays whatever can happen against a daemon. In the end everything that was asked has an answer, and no descriptor is left.
func FuzzServe(f *testing.F) {
	f.Add(false, []byte{0, 0, 1, 0, 3, 1, 0, 9, 2, 0})                               // open, read, read, close
	f.Add(false, []byte{0, 0, 6, 2, 1, 0, 3, 1, 0, 4, 7, 0, 6, 0, 1, 0, 9})          // hang, read, restart
	f.Add(false, []byte{0, 0, 0, 1, 0, 9, 5, 1, 1, 0, 3, 5, 0, 6, 1, 1, 1, 2, 2, 0}) // full disk
	f.Add(false, []byte{0, 0, 6, 2, 1, 0, 1, 1, 0, 2, 8, 0, 2, 0, 8, 0})             // restore and close while reading
	f.Add(true, []byte{0, 0, 6, 2, 1, 0, 1, 7, 0, 1, 0, 2, 0, 0, 2, 1})              // restart of old kernel
	f.Add(true, []byte{0, 0, 3, 17, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 0, 0, 4, 2, 9, 9})
	f.Fuzz(func(t *testing.T, old bool, script []byte) {
		if len(script) > 200 {
			script = script[:200]
		}
		before := openFiles(t)
		g := newGame(t, old)
		for g.script = script; len(g.script) > 0; {
			g.step()
		}
		g.finish()
		if n := openFiles(t); n != before {
			t.Errorf("%d open files, before %d", n, before)
		}
	})
}

type game struct {
	*served
	t        testing.TB
	script   []byte
	opening  []*request
	mounted  []*cacheFile
	requests []*request
	mood     atomic.Int32 // of objects: 0 good, 1 failing, 2 hanging, 3 unreadable
}

func newGame(t testing.TB, old bool) *game {
	k := newBound(t)
	k.old = old
	g := &game{t: t}
	g.served, _ = start(t, k, 1)
	g.d.o.Deadline = 30 * time.Millisecond
	for _, name := range []string{"0", "1", "2", "3"} {
		c := newContent(int64(name[0]-'0') * 100_000)
		c.before = func(ctx context.Context, off, n int64) error {
			switch g.mood.Load() {
			case 1:
				return errors.New("failing")
			case 2:
				return hang(ctx, off, n)
			}
			return nil
		}
		c.reads = func(int64) error {
			if g.mood.Load() == 3 {
				return errors.New("unreadable")
			}
			return nil
		}
		g.objects.add(name, c)
	}
	return g
}

func (g *game) next() byte {
	if len(g.script) == 0 {
		return 0
	}
	b := g.script[0]
	g.script = g.script[1:]
	return b
}

func (g *game) step() {
	switch op := g.next(); op % 9 {
	case 0:
		g.opening = append(g.opening, g.ask(&request{opcode: opOpen, file: g.file("v", string('0'+rune(g.next()%6)))}))
		if op >= 128 {
			g.settle()
		}
	case 1:
		g.settle()
		if f := g.pick(); f != nil {
			off := uint64(g.next()) * 4096
			g.requests = append(g.requests, g.ask(&request{opcode: opRead, file: f, off: off, n: uint64(op) << 10}))
		}
	case 2:
		if f := g.pick(); f != nil {
			for i, m := range g.mounted {
				if m == f {
					g.mounted = append(g.mounted[:i:i], g.mounted[i+1:]...)
					break
				}
			}
			g.withdraw(f)
		}
	case 3:
		g.garbage()
	case 4:
		g.garbledOpen()
	case 5:
		n := int(g.next())
		g.mu.Lock()
		g.refuse = func(_ int64, most int) (int, error) {
			switch n % 3 {
			case 1:
				return 0, unix.ENOSPC
			case 2:
				return min(most, pageBytes), nil
			}
			return most, nil
		}
		g.mu.Unlock()
	case 6:
		g.mood.Store(int32(g.next() % 4))
	case 7:
		g.stop()
		g.successor(g.t)
		g.d.o.Deadline = 30 * time.Millisecond
	case 8:
		g.kernel.write([]byte("restore"))
	}
}

// settle waits for mounts.
func (g *game) settle() {
	for _, r := range g.opening {
		if g.await(r) == nil {
			g.mounted = append(g.mounted, r.file)
		}
	}
	g.opening = nil
}

func (g *game) pick() *cacheFile {
	if len(g.mounted) == 0 {
		return nil
	}
	return g.mounted[int(g.next())%len(g.mounted)]
}

// garbage is a message that the kernel does not mean. A descriptor in it is none.
func (g *game) garbage() {
	n := min(int(g.next()), len(g.script))
	b := append([]byte(nil), g.script[:n]...)
	g.script = g.script[n:]
	if len(b) >= 28 && binary.NativeEndian.Uint32(b[4:]) == opOpen {
		b[27] |= 0x40
	}
	if len(b) > 0 {
		g.send(b)
	}
}

// garbledOpen is an OPEN with a descriptor that is an object's, and with something wrong.
func (g *game) garbledOpen() {
	f := g.file("v", "0")
	r := g.ask(&request{opcode: opOpen, file: f})
	g.mu.Lock()
	if !r.fresh || g.makeFD(f) != nil {
		g.mu.Unlock()
		g.opening = append(g.opening, r)
		return
	}
	r.fresh = false
	b := message{id: r.id, opcode: opOpen, object: f.id, volume: "v", cookie: "0", fd: f.fd}.encode()
	g.mu.Unlock()
	at, bit := int(g.next()), g.next()
	switch at %= len(b); {
	case at >= 16 && at < 24, at >= 8 && at < 12:
		b[at] ^= bit | 1
	default:
		b = b[:max(at, 28)]
	}
	g.send(b)
	g.opening = append(g.opening, r)
}

// finish has everything answered.
func (g *game) finish() {
	g.mood.Store(0)
	g.settle()
	for _, r := range g.requests {
		g.await(r)
	}
	eventually(g.t, "all messages are read", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.raw) == 0 && len(g.kernel.requests) == 0
	})
	g.stop()
}
