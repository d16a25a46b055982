package fanotify

import (
	"context"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Reads that wait when the data has become complete get right bytes: those that are being answered, those in the queue, and those
// that a dead process has left.
func TestFinish(t *testing.T) {
	for name, serving := range map[string]bool{"served": true, "not served": false} {
		t.Run(name, func(t *testing.T) {
			l, g, f := watched(t, 1<<20)
			held := []reading{leave(t, l, g, f, 10)}
			f.before = func(ctx context.Context, _, _ int64) error { <-ctx.Done(); return ctx.Err() }
			ended := make(chan error, 1)
			if serving {
				go func() { ended <- g.Serve(t.Context(), f) }()
			} else {
				ended <- nil
			}
			for page := range int64(slots + 5) {
				held = append(held, l.read(t, page))
			}
			eventually(t, "events in the queue", func() bool { return queued(t, g) > 0 && (!serving || len(g.Stats().InFlight) == slots) })
			must(t, f.fillAll())
			must(t, g.Finish())
			must(t, <-ended)
			for i, r := range held {
				if err := r.wait(t); err != nil {
					t.Errorf("read %d: %v", i, err)
				}
			}
			events := g.Stats().Events
			l.reader(t, 4, false).finished(l)
			if st := g.Stats(); st.Events != events || st.Failed != 0 {
				t.Errorf("%d events after the end; %+v", st.Events-events, st)
			}
			must(t, g.Finish())
			must(t, g.Close())
			if err := g.Serve(t.Context(), f); err != nil {
				t.Errorf("Serve after Finish: %v", err)
			}
		})
	}
}

// Finish while many read: none of them waits for ever, and none reads a hole.
func TestFinishUnderLoad(t *testing.T) {
	for range 10 {
		l, g, f := watched(t, 2<<20)
		must(t, f.fillAll())
		serve(t, g, f)
		reader := l.reader(t, 8, false)
		eventually(t, "events", func() bool { return g.Stats().Events > 100 })
		must(t, g.Finish())
		reader.finished(l)
	}
}

// The process died after it had removed the mark. The successor can finish, and does not serve.
func TestFinishIsRepeated(t *testing.T) {
	l, g, f := watched(t, 1<<20)
	must(t, unix.FanotifyMark(g.fd, unix.FAN_MARK_REMOVE, unix.FAN_PRE_ACCESS, int(l.data.Fd()), ""))
	next, err := adoptCopy(t, g, l.data)
	must(t, err)
	if err := next.Serve(t.Context(), f); err == nil {
		t.Error("serves what nothing watches")
	}
	must(t, next.Finish())
}

// Close leaves what is in flight to whoever holds the group.
func TestClose(t *testing.T) {
	l, g, f := watched(t, 1<<20)
	mine, err := adoptCopy(t, g, l.data)
	must(t, err)
	f.before = gates{pageOf(3): nil}.before
	stop := serve(t, mine, f)
	held := l.read(t, 3)
	eventually(t, "a fill", func() bool { return len(mine.Stats().InFlight) == 1 })
	must(t, mine.Close())
	stop()
	if n := leftInJournal(t, g); n != 1 {
		t.Errorf("%d events are left", n)
	}
	f.before = nil
	serve(t, g, f)
	must(t, held.wait(t))
}

// adoptCopy adopts copies of what a group hands to a keeper.
func adoptCopy(t testing.TB, g *Group, data *os.File) (*Group, error) {
	t.Helper()
	group, journal := g.Files()
	next, err := Adopt(dup(t, group), dup(t, journal), data)
	if err == nil {
		t.Cleanup(func() { next.Close() })
	}
	return next, err
}

func dup(t testing.TB, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	must(t, err)
	return os.NewFile(uintptr(fd), f.Name())
}
