package keeper

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A keeper that does not answer is there; only one that has ended, with all who have its lock, is gone.
func TestGone(t *testing.T) {
	at := address(t)
	must(t, Gone(at)) // there never was one
	k := spawn(t, "keeper", at, "1h")
	k.expect("ready")
	holdAll(t, at, "a")
	must(t, k.cmd.Process.Signal(syscall.SIGSTOP))
	if err := Gone(at); err == nil || !strings.Contains(err.Error(), strconv.Itoa(k.cmd.Process.Pid)) {
		t.Errorf("of a keeper that is stopped: %v", err)
	}
	for _, path := range []string{at + ".lock", at} { // whoever cleans up removes one after the other
		aside := path + ".aside"
		must(t, os.Rename(path, aside))
		if err := Gone(at); err == nil {
			t.Errorf("without %s it is taken for gone", filepath.Base(path))
		}
		must(t, os.Rename(aside, path))
	}
	must(t, k.cmd.Process.Signal(syscall.SIGCONT))
	spawn(t, "keeper", at, "1h", "replace").expect("ready")
	k.wait()
	if err := Gone(at); err == nil {
		t.Error("a successor is taken for gone")
	}
	r := status(t, at)
	must(t, syscall.Kill(r.PID, syscall.SIGKILL))
	eventually(t, "it is gone", func() bool { return Gone(at) == nil })
	if err := Gone(filepath.Join(at, "x")); err == nil {
		t.Error("not knowing is taken for gone")
	}
}

// To look whether a keeper is there does not keep one from starting.
func TestGoneDisturbsNobody(t *testing.T) {
	at := address(t)
	l, err := listen(at) // makes the lock's file
	must(t, err)
	l.close()
	var looking sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	looking.Go(func() {
		for ctx.Err() == nil {
			_ = Gone(at)
		}
	})
	for range 200 {
		l, err := listen(at)
		if err != nil {
			t.Error(err)
			break
		}
		l.close()
	}
	cancel()
	looking.Wait()
}

// Who has given up before it was its turn gets no role: it would take it from whoever came after it.
func TestAbandonedConnection(t *testing.T) {
	at := address(t)
	s, _ := keep(t, Options{Address: at})
	s.turn.Lock()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, _, _, err := Dial(ctx, at); err == nil {
		t.Error("served out of turn")
	}
	s.turn.Unlock()
	eventually(t, "its session has ended", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.open) == 0
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil {
		t.Errorf("process %d has the role", s.last.pid)
	}
}
