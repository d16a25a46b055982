package fanotify

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"
)

// TestKill kills processes that serve, each some time after its first answer. Readers see nothing of it: right bytes, no error, no hang.
// The blob is never read twice at the same place, so each page has one chance to be wrong.
func TestKill(t *testing.T) {
	const kills, threads = 200, 8
	l, g, f := watched(t, 160<<20)
	reader := l.reader(t, threads, false)
	inherited := 0
	for i := range kills {
		daemon := l.daemon(t, "serve", g, 4*time.Millisecond)
		if daemon.line() != "filled" {
			t.Fatalf("process %d ended by itself, or all was read too early", i)
		}
		time.Sleep(rand.N(15 * time.Millisecond))
		daemon.kill()
		inherited += leftInJournal(t, g)
	}
	serve(t, g, f)
	reader.finished(l)
	t.Logf("%d kills, %d events inherited", kills, inherited)
	if inherited < kills {
		t.Errorf("%d kills left %d events: too few to have tested anything", kills, inherited)
	}
	if st := g.Stats(); st.Failed+st.Refused+st.Notices > 0 {
		t.Errorf("%+v", st)
	}
}

// A keeper denies, is killed while it does, and others take its place. Readers get I/O errors or right bytes, and in the end all bytes.
func TestKillWhileDenied(t *testing.T) {
	l, g, f := watched(t, 4<<20)
	reader := l.reader(t, 8, true)
	for i := range 20 {
		role := []string{"deny", "serve"}[i%2]
		p := l.daemon(t, role, g, time.Millisecond)
		if p.line() != "filled" {
			t.Fatalf("process %d (%s) ended by itself, or all was read too early", i, role)
		}
		p.kill()
	}
	serve(t, g, f)
	if failed := reader.finished(l); failed == 0 {
		t.Error("no read was denied")
	}
}

// Two processes never answer the same group: the second waits for the end of the first.
func TestSecondProcessWaits(t *testing.T) {
	l, g, f := watched(t, 1<<20)
	held := l.read(t, 1)
	daemon := l.daemon(t, "serve", g, 0)
	if daemon.line() != "filled" {
		t.Fatal("the process ended")
	}
	must(t, held.wait(t))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := g.Serve(ctx, f); err != nil {
		t.Error(err)
	}
	serve(t, g, f)
	must(t, l.read(t, 2).wait(t))
	if n := f.fills.Load(); n != 0 {
		t.Errorf("%d fills in the second process while the first lives", n)
	}
	daemon.kill()
	must(t, l.read(t, 3).wait(t))
	if n := f.fills.Load(); n == 0 {
		t.Error("no fills in the second process")
	}
}

// A process that ends in order leaves what it has not answered.
func TestHandOver(t *testing.T) {
	l, g, f := watched(t, 4<<20)
	reader := l.reader(t, 8, false)
	for range 10 {
		daemon := l.daemon(t, "serve", g, 5*time.Millisecond)
		if daemon.line() != "filled" {
			t.Fatal("the process ended by itself, or all was read too early")
		}
		must(t, daemon.stdin.Close())
		if err := daemon.cmd.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	serve(t, g, f)
	reader.finished(l)
}
