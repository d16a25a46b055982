package fanotify

import (
	"os"
	"testing"
)

// twinsOf returns how many events of a session wait under the number of an inherited one.
func twinsOf(g *Group) (n int) {
	g.mu.Lock()
	s := g.current
	g.mu.Unlock()
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.twins {
		n = max(n, len(t.events))
	}
	return n
}

// leave has an event left in the journal, whose number is a descriptor that is free again. So the next event gets the same.
func leave(t *testing.T, l *layer, g *Group, f *filler, page int64) reading {
	t.Helper()
	f.before = gates{pageOf(page): nil}.before
	stop := serve(t, g, f)
	held := l.read(t, page)
	eventually(t, "a fill", func() bool { return len(g.Stats().InFlight) == 1 })
	stop()
	return held
}

// An event that was left and a new one have the same number. Whatever is filled first, no reader sees a hole.
func TestTwins(t *testing.T) {
	for name, first := range map[string]int64{"old first": 10, "new first": 20} {
		t.Run(name, func(t *testing.T) {
			l, g, f := watched(t, 1<<20)
			file := l.open(t)
			old := leave(t, l, g, f, 10)
			gate := gates{pageOf(10): make(chan struct{}), pageOf(20): make(chan struct{})}
			f.before = gate.before
			young, _ := readTwin(t, file, g, f)
			// Others are not held up.
			if err := l.read(t, 30).wait(t); err != nil {
				t.Error(err)
			}
			close(gate[pageOf(first)])
			eventually(t, "the first to be filled", func() bool { return f.Ready(pageOf(first), pageBytes) })
			close(gate[pageOf(30-first)])
			for _, r := range []reading{old, young} {
				if err := r.wait(t); err != nil {
					t.Error(err)
				}
			}
			if st := g.Stats(); st.Inherited != 1 || st.Late != 0 {
				t.Errorf("%+v", st)
			}
			eventually(t, "nothing in flight", func() bool { return len(g.Stats().InFlight) == 0 })
			if err := l.read(t, 40).wait(t); err != nil {
				t.Error(err)
			}
		})
	}
}

// readTwin serves, and reads page 20 of a file that was opened before leave, so that the event gets the number of the one that was left.
func readTwin(t *testing.T, file *os.File, g *Group, f *filler) (young reading, stop func()) {
	t.Helper()
	stop = serve(t, g, f)
	young = readOf(file, 20)
	eventually(t, "two fills", func() bool { return len(g.Stats().InFlight) == 2 })
	if twinsOf(g) != 2 {
		t.Fatal("the new event got another number")
	}
	return young, stop
}

// The predecessor died between an answer and its note, so the journal names an event that nobody waits for. An answer to it would reach
// the new event with the same number.
func TestTwinOfTheDead(t *testing.T) {
	l, g, f := watched(t, 1<<20)
	old := leave(t, l, g, f, 10)
	must(t, f.fill(pageOf(10), pageBytes))
	var dead event
	for i := range slots {
		if e, ok, err := parseSlot(g.journal.page, i, g.size); err != nil || ok {
			must(t, err)
			dead = e
		}
	}
	if waited, err := respond(g.fd, dead.number, allow); err != nil || !waited {
		t.Fatal(waited, err)
	}
	must(t, old.wait(t))
	f.present[10].Store(false)

	file := l.open(t) // with the descriptor of the reader that is gone
	gate := gates{pageOf(10): make(chan struct{}), pageOf(20): make(chan struct{})}
	f.before = gate.before
	young, _ := readTwin(t, file, g, f)
	close(gate[pageOf(10)])
	eventually(t, "the dead one to be filled", func() bool { return f.Ready(pageOf(10), pageBytes) })
	if n := len(g.Stats().InFlight); n != 2 {
		t.Errorf("%d in flight, want both", n)
	}
	close(gate[pageOf(20)])
	if err := young.wait(t); err != nil {
		t.Error(err)
	}
	eventually(t, "the answers", func() bool { return len(g.Stats().InFlight) == 0 })
	if st := g.Stats(); st.Late != 1 {
		t.Errorf("%d late answers", st.Late)
	}
}

// Twins that are left are twins again.
func TestTwinsInherited(t *testing.T) {
	l, g, f := watched(t, 1<<20)
	file := l.open(t)
	old := leave(t, l, g, f, 10)
	f.before = gates{pageOf(10): nil, pageOf(20): nil}.before
	young, stop := readTwin(t, file, g, f)
	stop()
	f.before = nil
	serve(t, g, f)
	for _, r := range []reading{old, young} {
		if err := r.wait(t); err != nil {
			t.Error(err)
		}
	}
}
