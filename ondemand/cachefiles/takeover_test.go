package cachefiles

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// successor is another daemon for the same kernel, after the first has ended.
func (s *served) successor(t testing.TB) error {
	t.Helper()
	d, err := takeOver(newOn(s.kernel, s.options()))
	if d == nil {
		t.Fatal(err)
	}
	s.d = d
	s.serve(t)
	return err
}

// READs that a daemon had in flight when it ended, and what was asked meanwhile, are answered by the next, and readers see nothing of it.
func TestRestore(t *testing.T) {
	before := openFiles(t)
	s, c := start(t, newBound(t), 1<<20)
	c.before = hang
	f := s.mount(t, "one")
	errs := make(chan error, 3)
	read := func(off int64) {
		b, err := s.readAt(f, off, 8192)
		c.check(t, b, off)
		errs <- err
	}
	go read(0)
	go read(1 << 16)
	eventually(t, "two in flight", func() bool { return len(s.d.Stats().InFlight) == 2 })
	for i := range 20 {
		s.stop()
		if i == 0 {
			go read(1 << 17)
			eventually(t, "three waiting", func() bool { return s.waiting() == 3 })
		}
		if len(errs) > 0 {
			t.Fatalf("answered: %v", <-errs)
		}
		next := newContent(c.size)
		if i < 19 {
			next.before = hang
		}
		s.objects.add("one", next)
		if err := s.successor(t); err != nil {
			t.Fatal(err)
		}
		if i < 19 {
			eventually(t, "all in flight again", func() bool { return len(s.d.Stats().InFlight) == 3 })
		}
	}
	for range 3 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	s.stop()
	if n := openFiles(t); n != before {
		t.Errorf("%d open files, before %d", n, before)
	}
}

// The same Device can be served again.
func TestServeAgain(t *testing.T) {
	s, c := start(t, newBound(t), 1<<20)
	c.before = hang
	f := s.mount(t, "one")
	r := s.ask(&request{opcode: opRead, file: f, n: 4096})
	eventually(t, "in flight", func() bool { return len(s.d.Stats().InFlight) == 1 })
	s.stop()
	s.objects.add("one", newContent(1<<20))
	s.serve(t)
	if err := s.await(r); err != nil {
		t.Error(err)
	}
}

// An OPEN that nobody answered is shown with a descriptor to the next.
func TestRestoreOpen(t *testing.T) {
	s, c := start(t, newBound(t), 1<<20)
	s.stop()
	f := s.file("erofs,test", "one")
	r := s.ask(&request{opcode: opOpen, file: f})
	var b [messageMost]byte
	if n, err := s.read(b[:]); n == 0 || err != nil { // by a daemon that ends before it answers
		t.Fatal(n, err)
	}
	s.mu.Lock()
	fd := f.fd
	delete(s.byFD, fd)
	f.fd = 0
	s.mu.Unlock()
	unix.Close(fd)
	if err := s.successor(t); err != nil {
		t.Fatal(err)
	}
	if err := s.await(r); err != nil {
		t.Error(err)
	}
	s.expect(t, f, c, 0, 1<<20)
}

// Without restore what was in flight fails, and so does what was open. New mounts work.
func TestNoRestore(t *testing.T) {
	k := newBound(t)
	k.old = true
	s, c := start(t, k, 1<<20)
	f := s.mount(t, "one")
	s.expect(t, f, c, 0, 8192)
	s.stop()
	if err := s.successor(t); !errors.Is(err, ErrNoRestore) {
		t.Errorf("got %v", err)
	}
	if _, err := s.readAt(f, 8192, 4096); err != unix.EIO {
		t.Errorf("got %v, want EIO", err)
	}
	s.expect(t, f, c, 0, 8192) // cached
	s.expect(t, s.mount(t, "one"), c, 0, 1<<20)
}

// A predecessor that is about to end still has an object's descriptor: its READs are asked for until it has ended.
func TestReadOfPredecessor(t *testing.T) {
	s, c := start(t, newBound(t), 1<<20)
	s.stop()
	f := s.file("erofs,test", "one")
	opening := s.ask(&request{opcode: opOpen, file: f})
	var b [messageMost]byte
	n, err := s.read(b[:])
	if err != nil {
		t.Fatal(err)
	}
	m, err := parse(b[:n])
	if err != nil {
		t.Fatal(err)
	}
	if err := s.kernel.write([]byte(copen(m.id, c.size))); err != nil {
		t.Fatal(err)
	}
	if err := s.await(opening); err != nil {
		t.Fatal(err)
	}
	r := s.ask(&request{opcode: opRead, file: f, n: 4096})
	if n, err := s.read(b[:]); n == 0 || err != nil {
		t.Fatal(n, err)
	}

	if err := s.successor(t); err != nil {
		t.Fatal(err)
	}
	other := newContent(4096)
	s.objects.add("two", other)
	g := s.mount(t, "two")
	eventually(t, "a READ that is not ours", func() bool { return s.d.Stats().Strangers > 1 })
	s.expect(t, g, other, 0, 4096)
	if err := s.closeFile(m.fd); err != nil { // the predecessor ends
		t.Fatal(err)
	}
	if err := s.await(r); err != nil {
		t.Error(err)
	}
	s.expect(t, f, c, 0, 1<<20)
	if st := s.d.Stats(); st.Strangers != st.Unanswered {
		t.Errorf("%+v", st)
	}
}

// What is being served when everything is shown again is not served twice.
func TestRepeatedReads(t *testing.T) {
	s, c := start(t, newBound(t), 1<<20)
	gate := make(chan struct{})
	c.before = func(context.Context, int64, int64) error { <-gate; return nil }
	f := s.mount(t, "one")
	r := s.ask(&request{opcode: opRead, file: f, n: 4096})
	eventually(t, "in flight", func() bool { return len(s.d.Stats().InFlight) == 1 })
	if err := s.d.restore(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "shown again", func() bool { return s.d.Stats().Repeated == 1 })
	close(gate)
	if err := s.await(r); err != nil {
		t.Error(err)
	}
	if n := c.fills.Load(); n != 1 {
		t.Errorf("%d fills", n)
	}
}

// A READ that waits has its object opened again and again if that fails. It does not take a processor, and ends when the object is known.
func TestUnknownAfterTakeover(t *testing.T) {
	s, c := start(t, newBound(t), 1<<20)
	f := s.mount(t, "one")
	s.stop()
	s.objects.have = map[string]*content{}
	r := s.ask(&request{opcode: opRead, file: f, n: 4096})
	if err := s.successor(t); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * knownPause)
	if n := s.d.Stats().Unknown; n < 2 || n > 10 {
		t.Errorf("%d OPENs of what is not known", n)
	}
	if n := s.log.count("cannot open an object"); n != 1 {
		t.Errorf("that was said %d times", n)
	}
	s.objects.add("one", c)
	if err := s.await(r); err != nil {
		t.Error(err)
	}
	s.expect(t, f, c, 0, 1<<20)
}
