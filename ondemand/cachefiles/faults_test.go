package cachefiles

import (
	"context"
	"errors"
	"io"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What fails is EIO, of no other object, and works when it works again.
func TestFailedFill(t *testing.T) {
	each(t, func(t *testing.T, k *kernel) {
		s, c := start(t, k, 1<<20)
		broken := errors.New("no network")
		var fail atomic.Bool
		fail.Store(true)
		c.before = func(context.Context, int64, int64) error {
			if fail.Load() {
				return broken
			}
			return nil
		}
		f := s.mount(t, "one")
		if _, err := s.readAt(f, 0, 4096); err != unix.EIO {
			t.Errorf("got %v, want EIO", err)
		}
		if st := s.d.Stats(); st.Failed != 2 || st.Written != 0 || st.Answers.Count != 0 {
			t.Errorf("%+v", st)
		}
		eventually(t, "it is logged", func() bool { return s.log.contains("no network") && s.log.contains("cookie=one") })
		fail.Store(false)
		s.expect(t, f, c, 0, 1<<20)
	})
}

// What cannot be read though it was filled is not made up.
func TestFailedReadAt(t *testing.T) {
	s, c := start(t, newBound(t), 1<<20)
	c.reads = func(off int64) error {
		if off >= chunkBytes {
			return io.ErrUnexpectedEOF
		}
		return nil
	}
	f := s.mount(t, "one")
	b, err := s.readAt(f, 0, 1<<20)
	if err != unix.EIO || len(b) != chunkBytes {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	c.check(t, b, 0)
	if st := s.d.Stats(); st.Written != chunkBytes || st.Failed != 3 {
		t.Errorf("%+v", st)
	}
}

// A reader waits for one deadline, though the kernel asks twice. What fails soon is tried twice.
func TestSlowFailure(t *testing.T) {
	for slow, fills := range map[bool]int64{true: 1, false: 2} {
		s, c := start(t, newBound(t), 1<<20)
		f := s.mount(t, "one")
		c.before = func(context.Context, int64, int64) error {
			if slow {
				time.Sleep(slowFailure)
			}
			return errors.New("nothing there")
		}
		if _, err := s.readAt(f, 8192, 4096); err != unix.EIO {
			t.Errorf("read: %v", err)
		}
		if n := c.fills.Load(); n != fills {
			t.Errorf("slow %t: tried %d times", slow, n)
		}
		if n := s.d.Stats().Failed; n != 2 {
			t.Errorf("slow %t: %d READs failed", slow, n)
		}
		c.before = nil
		s.expect(t, f, c, 0, 1<<20)
		s.stop()
	}
}

func TestDeadline(t *testing.T) {
	each(t, func(t *testing.T, k *kernel) {
		s, c := start(t, k, 1<<20)
		s.d.o.Deadline = 20 * time.Millisecond
		deaf := make(chan struct{})
		c.before = func(context.Context, int64, int64) error { <-deaf; return nil }
		f := s.mount(t, "one")
		if _, err := s.readAt(f, 0, 4096); err != unix.EIO {
			t.Errorf("got %v, want EIO", err)
		}
		if st := s.d.Stats(); st.Expired != 2 || st.Failed != 2 || len(st.InFlight) != 0 {
			t.Errorf("%+v", st)
		}
		close(deaf)
		s.stop()
		if st := s.d.Stats(); st.Answers.Count != 0 || st.Late != 0 {
			t.Errorf("answered twice: %+v", st)
		}
	})
}

// A partial answer is used, and the rest is asked for again.
func TestPartialWrites(t *testing.T) {
	s, c := start(t, newBound(t), 1<<20)
	page := int64(pageBytes)
	s.refuse = func(off int64, n int) (int, error) { return min(n, 3*int(page)), nil }
	f := s.mount(t, "one")
	s.expect(t, f, c, 0, 64*page)
	s.mu.Lock()
	s.refuse = func(off int64, n int) (int, error) {
		if off%(8*page) == 0 {
			return int(page), unix.ENOSPC // a page, then an error
		}
		return 0, unix.ENOSPC
	}
	s.mu.Unlock()
	b, err := s.readAt(f, 64*page, 8*page)
	if err != unix.EIO || int64(len(b)) != page {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	c.check(t, b, 64*page)
}

func TestFullDisk(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ENOSPC, unix.ENOBUFS} {
		s, c := start(t, newBound(t), 1<<20)
		s.refuse = func(int64, int) (int, error) { return 0, errno }
		f := s.mount(t, "one")
		if _, err := s.readAt(f, 0, 4096); err != unix.EIO {
			t.Errorf("%v: got %v, want EIO", errno, err)
		}
		if st := s.d.Stats(); st.NoRoom != 2 || st.Failed != 2 || st.Written != 0 {
			t.Errorf("%v: %+v", errno, st)
		}
		eventually(t, "it is logged", func() bool { return s.log.contains("make room") })
		s.mu.Lock()
		s.refuse = nil
		s.mu.Unlock()
		s.expect(t, f, c, 0, 1<<20)
	}
}

// A kernel that takes what cannot be is not believed.
func TestOddWrites(t *testing.T) {
	for _, n := range []int{0, 100, 1 << 20} {
		s, _ := start(t, newBound(t), 8192)
		f := s.mount(t, "one")
		s.mu.Lock()
		s.refuse = func(int64, int) (int, error) { return n, nil }
		s.mu.Unlock()
		if err := s.await(s.ask(&request{opcode: opRead, file: f, n: 4096})); err != nil {
			t.Error(err)
		}
		if st := s.d.Stats(); st.Failed != 1 || st.Answers.Count != 0 {
			t.Errorf("%d: %+v", n, st)
		}
	}
}

// Whatever the kernel sends, what is right is answered.
func TestGarbage(t *testing.T) {
	each(t, func(t *testing.T, k *kernel) {
		s, c := start(t, k, 1<<20)
		f := s.mount(t, "one")
		for _, b := range [][]byte{
			{1}, make([]byte, 15), append(message{id: 1 << 30}.encode()[:16], make([]byte, 1008)...), message{id: 1 << 30, opcode: opRead}.encode()[:20],
			message{id: 1 << 30, opcode: 77, object: f.id}.encode(), message{id: 1 << 30, opcode: opClose, object: 1 << 30}.encode(),
			message{id: 1 << 30, opcode: opOpen, fd: math.MaxInt32, volume: "v"}.encode(),
		} {
			s.send(b)
		}
		s.expect(t, f, c, 0, 1<<20)
		for _, r := range []struct{ off, n uint64 }{
			{1 << 20, 4096}, {math.MaxUint64, math.MaxUint64}, {math.MaxUint64 - 4095, 4096}, {1 << 63, 1}, {math.MaxInt64, math.MaxInt64}, {0, 0},
		} {
			if err := k.await(k.ask(&request{opcode: opRead, file: f, off: r.off, n: r.n})); err != nil {
				t.Errorf("%+v: %v", r, err)
			}
		}
		for _, r := range []struct{ off, n uint64 }{{0, math.MaxUint64}, {100, 1}, {4097, math.MaxInt64}, {1<<20 - 1, 1}} {
			if err := k.await(k.ask(&request{opcode: opRead, file: f, off: r.off, n: r.n})); err != nil {
				t.Errorf("%+v: %v", r, err)
			}
		}
		if st := s.d.Stats(); st.Garbled != 6 || st.Failed != 5 {
			t.Errorf("%+v", st)
		}
	})
}

// What a request of a kind that is not known gets is better than nothing.
func TestUnknownOpcode(t *testing.T) {
	k := newBound(t)
	k.old = true
	s, _ := start(t, k, 1<<20)
	f := s.mount(t, "one")
	if err := k.await(k.ask(&request{opcode: 9, file: f})); err != nil {
		t.Error(err)
	}
	if err := k.await(k.ask(&request{opcode: 9, file: k.file("v", "c")})); err != unix.EIO {
		t.Error(err)
	}
}
