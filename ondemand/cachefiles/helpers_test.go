package cachefiles

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// content is an Object whose bytes can be told from their offset. What was not filled cannot be read.
type content struct {
	size   int64
	before func(ctx context.Context, off, n int64) error // of Fill
	reads  func(off int64) error                         // of ReadAt
	fills  atomic.Int64
	closed atomic.Int64

	mu     sync.Mutex
	filled map[int64]bool
}

func newContent(size int64) *content { return &content{size: size, filled: map[int64]bool{}} }

func (c *content) Size() int64  { return c.size }
func (c *content) Close() error { c.closed.Add(1); return nil }

func (c *content) Fill(ctx context.Context, off, n int64) error {
	c.fills.Add(1)
	if off < 0 || n <= 0 || off+n > c.size {
		return fmt.Errorf("fill of %d bytes at %d of %d", n, off, c.size)
	}
	if c.before != nil {
		if err := c.before(ctx, off, n); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := off; p < off+n; p += int64(pageBytes) {
		c.filled[p] = true
	}
	return nil
}

func (c *content) ReadAt(p []byte, off int64) (int, error) {
	if c.reads != nil {
		if err := c.reads(off); err != nil {
			return 0, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range p {
		at := off + int64(i)
		if !c.filled[at-at%int64(pageBytes)] {
			return i, errors.New("not filled")
		}
		p[i] = byteAt(at)
	}
	return len(p), nil
}

func byteAt(off int64) byte { return byte(off>>12)*7 + byte(off) | 1 }

// check compares what was read with what is right: behind the end are zeros.
func (c *content) check(t testing.TB, b []byte, off int64) {
	t.Helper()
	want := make([]byte, len(b))
	for i := range want {
		if at := off + int64(i); at < c.size {
			want[i] = byteAt(at)
		}
	}
	if !bytes.Equal(b, want) {
		t.Errorf("%d bytes at %d are not what they should be", len(b), off)
	}
}

// objects is what a Lookup knows, by cookie.
type objects struct {
	mu   sync.Mutex
	have map[string]*content
}

func (o *objects) lookup(_, cookie string) (Object, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c, ok := o.have[cookie]; ok {
		return c, nil
	}
	return nil, fmt.Errorf("%w: %s", ErrUnknown, cookie)
}

func (o *objects) add(cookie string, c *content) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.have[cookie] = c
}

// served is a kernel and a daemon that serves it.
type served struct {
	*kernel
	objects *objects
	d       *Device
	log     *lines
	stop    func()
}

// start serves a kernel that has a cache, with one object "one" of the given size.
func start(t testing.TB, k *kernel, size int64) (*served, *content) {
	t.Helper()
	s := &served{kernel: k, objects: &objects{have: map[string]*content{}}, log: &lines{}}
	c := newContent(size)
	s.objects.add("one", c)
	s.d = newOn(k, s.options())
	s.serve(t)
	return s, c
}

func (s *served) options() Options {
	return Options{Lookup: s.objects.lookup, Deadline: patience, Log: slog.New(slog.NewTextHandler(s.log, nil))}
}

// serve serves until stop, and at last until the end of the test, which looks for what the daemon did wrong.
func (s *served) serve(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.d.Serve(ctx) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(patience):
			t.Error("Serve does not end")
		}
		s.check()
	})
	t.Cleanup(s.stop)
}

// mount opens an object, which must work.
func (s *served) mount(t testing.TB, cookie string) *cacheFile {
	t.Helper()
	f, err := s.open("erofs,test", cookie)
	if err != nil {
		t.Fatalf("open %s: %v", cookie, err)
	}
	return f
}

// expect reads and compares.
func (s *served) expect(t testing.TB, f *cacheFile, c *content, off, n int64) {
	t.Helper()
	b, err := s.readAt(f, off, n)
	if err != nil {
		t.Errorf("read %d bytes at %d: %v", n, off, err)
	}
	c.check(t, b, off)
}

// lines is what was logged.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) contains(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Contains(l.b.Bytes(), []byte(s))
}

func (l *lines) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.b.Bytes(), []byte(s))
}

func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}
