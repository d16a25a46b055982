package cachefiles

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// each runs a test with a kernel of today, and with one from before restore.
func each(t *testing.T, test func(t *testing.T, k *kernel)) {
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprintf("old=%v", old), func(t *testing.T) {
			k := newBound(t)
			k.old = old
			test(t, k)
		})
	}
}

func TestLife(t *testing.T) {
	each(t, func(t *testing.T, k *kernel) {
		before := openFiles(t)
		const size = 5<<20 + 1234
		s, c := start(t, k, size)
		f := s.mount(t, "one")
		if f.size != size {
			t.Errorf("opened with %d bytes", f.size)
		}
		page := int64(pageBytes)
		s.expect(t, f, c, 7*page, page)
		s.expect(t, f, c, 0, 5<<20+page) // all of it, more than is served at a time, with the padding
		st := s.d.Stats()
		if st.Opens != 1 || st.Reads < 6 || st.Answers.Count != st.Reads || st.Objects != 1 || len(st.InFlight) != 0 ||
			st.Written != 5<<20+uint64(page) || st.Failed+st.Late+st.Garbled+st.Unanswered != 0 {
			t.Errorf("%+v", st)
		}
		fills := c.fills.Load()
		s.expect(t, f, c, 0, size)
		if c.fills.Load() != fills {
			t.Error("asked for what is there")
		}
		if err := s.withdraw(f); err != nil {
			t.Error(err)
		}
		eventually(t, "the object is closed", func() bool { return c.closed.Load() == 1 && s.d.Stats().Objects == 0 })
		s.stop()
		if n := openFiles(t); n != before {
			t.Errorf("%d open files, before %d", n, before)
		}
		if st := s.d.Stats(); st.Closes != 1 {
			t.Errorf("%+v", st)
		}
	})
}

func TestSmallObjects(t *testing.T) {
	s, _ := start(t, newBound(t), 1)
	for _, size := range []int64{0, 1, 4095, 4096, 4097} {
		name := fmt.Sprint(size)
		c := newContent(size)
		s.objects.add(name, c)
		f := s.mount(t, name)
		if f.size != size {
			t.Errorf("%d bytes: opened with %d", size, f.size)
		}
		s.expect(t, f, c, 0, (size+4095)&^4095)
	}
}

func TestUnknownCookie(t *testing.T) {
	each(t, func(t *testing.T, k *kernel) {
		before := openFiles(t)
		s, _ := start(t, k, 1)
		for _, cookie := range []string{"other", strings.Repeat("\xff", 255), ""} {
			if _, err := s.open("erofs,test", cookie); err != unix.ENOENT {
				t.Errorf("%.10q: %v", cookie, err)
			}
		}
		broken := newContent(-1)
		s.objects.add("broken", broken)
		if _, err := s.open("erofs,test", "broken"); err != unix.EIO {
			t.Errorf("broken: %v", err)
		}
		s.mount(t, "one")
		s.stop()
		if n := openFiles(t); n != before {
			t.Errorf("%d open files, before %d", n, before)
		}
		if st := s.d.Stats(); st.Unknown != 3 || st.OpenFailed != 1 || broken.closed.Load() != 1 {
			t.Errorf("%+v", st)
		}
	})
}

// OPEN has its answer while READs wait for what does not come.
func TestOpenDoesNotWaitForReads(t *testing.T) {
	s, c := start(t, newBound(t), 1<<20)
	c.before = hang
	f := s.mount(t, "one")
	var reads []*request
	for i := range uint64(readsMost + 20) {
		reads = append(reads, s.ask(&request{opcode: opRead, file: f, off: i * 4096, n: 4096}))
	}
	eventually(t, "all are known", func() bool { return len(s.d.Stats().InFlight) == len(reads) })
	if n := c.fills.Load(); n > readsMost {
		t.Errorf("%d fills at a time", n)
	}
	other := newContent(8192)
	s.objects.add("two", other)
	s.expect(t, s.mount(t, "two"), other, 0, 8192)
	in := s.d.Stats().InFlight[0]
	if in.Volume != "erofs,test" || in.Cookie != "one" || in.Offset != 0 || in.Length != 4096 || in.Since.IsZero() {
		t.Errorf("in flight: %+v", in)
	}
}

func hang(ctx context.Context, _, _ int64) error {
	<-ctx.Done()
	return ctx.Err()
}

// More READs than are served at a time.
func TestManyReads(t *testing.T) {
	each(t, func(t *testing.T, k *kernel) {
		s, c := start(t, k, 64<<20)
		gate := make(chan struct{})
		c.before = func(context.Context, int64, int64) error { <-gate; return nil }
		f := s.mount(t, "one")
		var reads []*request
		for i := range uint64(3 * readsMost) {
			reads = append(reads, s.ask(&request{opcode: opRead, file: f, off: i << 16, n: 4096}))
		}
		eventually(t, "all are known", func() bool { return len(s.d.Stats().InFlight) == len(reads) })
		close(gate)
		for _, r := range reads {
			if err := k.await(r); err != nil {
				t.Error(err)
			}
		}
		eventually(t, "nothing in flight", func() bool { return len(s.d.Stats().InFlight) == 0 })
	})
}

func TestManyObjects(t *testing.T) {
	each(t, func(t *testing.T, k *kernel) {
		before := openFiles(t)
		s, _ := start(t, k, 1)
		var all sync.WaitGroup
		for i := range 60 {
			all.Go(func() {
				c := newContent(int64(1<<18 + i*1000))
				name := fmt.Sprint("object", i)
				s.objects.add(name, c)
				f, err := s.open("erofs,test", name)
				if err != nil {
					t.Error(err)
					return
				}
				var readers sync.WaitGroup
				for r := range int64(4) {
					readers.Go(func() {
						for at := r * 4096; at < c.size; at += 7 * 4096 {
							s.expect(t, f, c, at, 4096)
						}
					})
				}
				readers.Wait()
				if i%2 == 0 {
					if err := s.withdraw(f); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		s.stop()
		if n := openFiles(t); n != before {
			t.Errorf("%d open files, before %d", n, before)
		}
	})
}

func TestCloseWhileReading(t *testing.T) {
	each(t, func(t *testing.T, k *kernel) {
		before := openFiles(t)
		s, c := start(t, k, 1<<20)
		gate := make(chan struct{})
		c.before = func(ctx context.Context, _, _ int64) error { // one that does not hear
			<-gate
			return nil
		}
		f := s.mount(t, "one")
		var reads []*request
		for i := range uint64(readsMost + 5) {
			reads = append(reads, s.ask(&request{opcode: opRead, file: f, off: i * 4096, n: 4096}))
		}
		eventually(t, "all are known", func() bool { return len(s.d.Stats().InFlight) == len(reads) })
		if err := s.withdraw(f); err != nil {
			t.Error(err)
		}
		for _, r := range reads {
			if err := k.await(r); (err != nil) != !k.old {
				t.Error(err)
			}
		}
		if c.closed.Load() != 0 {
			t.Error("closed while it is in use")
		}
		// What is asked in between has an answer, too.
		s.send(message{id: 1 << 20, opcode: opRead, object: 1, n: 4096}.encode())
		close(gate)
		eventually(t, "the object is closed", func() bool { return c.closed.Load() == 1 && s.d.Stats().Objects == 0 })
		s.stop()
		if n := openFiles(t); n != before {
			t.Errorf("%d open files, before %d", n, before)
		}
		if st := s.d.Stats(); st.Failed != 0 || st.Answers.Count != 0 || st.Late != 0 != !k.old {
			t.Errorf("%+v", st)
		}
	})
}

// A mount that has given up does not want the answer.
func TestOpenAnsweredTooLate(t *testing.T) {
	before := openFiles(t)
	s, c := start(t, newBound(t), 4096)
	f := s.file("erofs,test", "one")
	s.onWrite = func(command string) error {
		if strings.HasPrefix(command, "copen") {
			s.withdraw(f)
		}
		return nil
	}
	if err := s.await(s.ask(&request{opcode: opOpen, file: f})); err != unix.EIO {
		t.Error(err)
	}
	eventually(t, "the object is closed", func() bool { return c.closed.Load() == 1 && s.d.Stats().Objects == 0 })
	s.stop()
	if n := openFiles(t); n != before {
		t.Errorf("%d open files, before %d", n, before)
	}
	if st := s.d.Stats(); st.OpenFailed != 1 {
		t.Errorf("%+v", st)
	}
}

// A read of nothing is not the end.
func TestEmptyReads(t *testing.T) {
	s, c := start(t, newBound(t), 4096)
	for range 100 {
		s.wakeUp()
		time.Sleep(100 * time.Microsecond)
	}
	s.expect(t, s.mount(t, "one"), c, 0, 4096)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reads > 300 {
		t.Errorf("read %d times", s.reads)
	}
}

func TestNoDescriptors(t *testing.T) {
	s, c := start(t, newBound(t), 4096)
	s.mu.Lock()
	s.noFiles = unix.EMFILE
	s.mu.Unlock()
	if _, err := s.open("erofs,test", "one"); err != unix.EMFILE {
		t.Error(err)
	}
	s.mu.Lock()
	s.noFiles = nil
	s.mu.Unlock()
	s.expect(t, s.mount(t, "one"), c, 0, 4096)
	if st := s.d.Stats(); st.Refused != 1 {
		t.Errorf("%+v", st)
	}
}

func TestPagesOf(t *testing.T) {
	const size = 3*4096 + 100
	for _, c := range []struct {
		off, n   uint64
		from, to int64
		ok       bool
	}{
		{0, 4096, 0, 4096, true}, {100, 1, 0, 4096, true}, {4095, 2, 0, 8192, true}, {3 * 4096, 4096, 3 * 4096, 4 * 4096, true},
		{8192, 1 << 40, 8192, 4 * 4096, true}, {0, 0, 0, 0, true}, {size, 1, 0, 0, false}, {math.MaxUint64, 1, 0, 0, false}, {size, 0, 0, 0, true},
	} {
		from, n, ok := pagesOf(c.off, c.n, size)
		if from != c.from || from+n != c.to || ok != c.ok {
			t.Errorf("%d bytes at %d: %d bytes at %d, %v", c.n, c.off, n, from, ok)
		}
	}
	if _, n, ok := pagesOf(0, math.MaxUint64, math.MaxInt64-4096); n != fillMost || !ok {
		t.Errorf("of everything: %d, %v", n, ok)
	}
	if pageBytes != 4096 {
		t.Logf("pages of %d bytes: not tested", pageBytes)
	}
}

func TestServeTwice(t *testing.T) {
	s, _ := start(t, newBound(t), 4096)
	eventually(t, "served", func() bool { s.d.mu.Lock(); defer s.d.mu.Unlock(); return s.d.current != nil })
	if err := s.d.Serve(t.Context()); err == nil {
		t.Error("served twice")
	}
	if err := s.d.Close(); err != nil {
		t.Error(err)
	}
	s.stop()
	if err := s.d.Serve(t.Context()); err == nil {
		t.Error("served after Close")
	}
	if err := s.d.Close(); err != nil {
		t.Error(err)
	}
}

// A device that cannot be read ends Serve.
func TestUnreadable(t *testing.T) {
	k := newBound(t)
	d := newOn(deadPort{k}, Options{Lookup: (&objects{}).lookup})
	if err := d.Serve(t.Context()); !errors.Is(err, unix.EBADF) {
		t.Error(err)
	}
}

type deadPort struct{ *kernel }

func (deadPort) read([]byte) (int, error) { return 0, unix.EBADF }
