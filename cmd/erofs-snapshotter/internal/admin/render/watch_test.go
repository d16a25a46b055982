package render

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

// restarted is the daemon after an upgrade.
func restarted() admin.Status {
	return admin.Status{Format: admin.Format, Time: noon.Add(31 * time.Second), Version: "v1.3.0", Started: noon.Add(30 * time.Second), Root: "/var/lib/x"}
}

// answers gives one answer after another, a Status or an error, and ends the context with the last.
func answers(end func(), script ...any) func(context.Context) (admin.Status, error) {
	return func(ctx context.Context) (admin.Status, error) {
		if len(script) == 0 {
			end()
			return admin.Status{}, ctx.Err()
		}
		next := script[0]
		script = script[1:]
		if err, ok := next.(error); ok {
			return admin.Status{}, err
		}
		return next.(admin.Status), nil
	}
}

func script() []any {
	gone := fmt.Errorf("admin socket /x: %w\n  start it", admin.ErrNotRunning)
	return []any{busy(), later(), gone, gone, restarted()}
}

func TestWatchLines(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var b strings.Builder
	if err := (Watch{Ask: answers(cancel, script()...), Interval: time.Millisecond, Out: &b}).Run(ctx); err != nil {
		t.Fatal(err)
	}
	// An interruption has the time at which it was seen, everything else the daemon's.
	got := regexp.MustCompile(`(?m)^\S+ no answer`).ReplaceAllString(b.String(), "TIME no answer")
	golden(t, "lines.txt", got)
}

func TestWatchJSON(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var b strings.Builder
	if err := (Watch{Ask: answers(cancel, script()...), Interval: time.Millisecond, Out: &b, JSON: true}).Run(ctx); err != nil {
		t.Fatal(err)
	}
	var versions []string
	for line := range strings.Lines(b.String()) {
		var s admin.Status
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatal(err)
		}
		versions = append(versions, s.Version)
	}
	if got := strings.Join(versions, " "); got != "v1.2.3 v1.2.3 v1.3.0" {
		t.Errorf("got %s", got)
	}
}

// screen is what a terminal of some size makes of the sequences that we write.
type screen struct {
	columns, rows int
	lines         []string // the cursor is below the last one
	shows         []string // what was on the screen after each write
}

var upSequence = regexp.MustCompile(`^\x1b\[(\d+)F`)

func (s *screen) Write(p []byte) (int, error) {
	text := string(p)
	if m := upSequence.FindStringSubmatch(text); m != nil {
		up, _ := strconv.Atoi(m[1])
		if up > len(s.lines) || up > s.rows-1 {
			return 0, fmt.Errorf("the cursor cannot go %d up on a screen of %d rows with %d lines", up, s.rows, len(s.lines))
		}
		s.lines = s.lines[:len(s.lines)-up]
		text = text[len(m[0]):]
	}
	text, ok := strings.CutPrefix(text, "\x1b[J")
	if !ok || strings.Contains(text, "\x1b") {
		return 0, fmt.Errorf("unknown sequence in %q", p)
	}
	for line := range strings.Lines(text) {
		if len([]rune(strings.TrimSuffix(line, "\n"))) >= s.columns {
			return 0, fmt.Errorf("the line %q is too long", line)
		}
		s.lines = append(s.lines, line)
	}
	s.shows = append(s.shows, strings.Join(s.lines, ""))
	return len(p), nil
}

func TestWatchTerminal(t *testing.T) {
	for _, test := range []struct {
		name          string
		columns, rows int
		sizeErr       error
		first         string // row of the first frame
		height        int    // of the first frame
	}{
		{"large", 200, 50, nil, "registry.example/app:1 (k8s.io), 1 of 3 layers", 6},
		{"small", 20, 5, nil, "registry.example/ap", 4},
		{"size is not known", 80, 24, errors.New("not a terminal"), "registry.example/app:1", 6},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			s := &screen{columns: test.columns, rows: test.rows}
			size := func() (int, int, error) {
				if test.sizeErr != nil {
					return 0, 0, test.sizeErr
				}
				return test.columns, test.rows, nil
			}
			if err := (Watch{Ask: answers(cancel, script()...), Interval: time.Millisecond, Out: s, TerminalSize: size}).Run(ctx); err != nil {
				t.Fatal(err)
			}
			if len(s.shows) != 5 {
				t.Fatalf("%d frames", len(s.shows))
			}
			if !strings.HasPrefix(s.shows[0], test.first) || strings.Count(s.shows[0], "\n") != test.height {
				t.Errorf("first frame:\n%s", s.shows[0])
			}
			if !strings.HasPrefix(s.shows[2], "no answer: admin so") || strings.Count(s.shows[2], "\n") != 2 {
				t.Errorf("interruption:\n%s", s.shows[2])
			}
			if s.shows[4] != cut("0 layers, 0 B on disk", test.columns-1)+"\n" {
				t.Errorf("last frame:\n%s", s.shows[4])
			}
		})
	}
}

func TestWatchEnds(t *testing.T) {
	broken := errors.New("broken")
	failing := writeFunc(func([]byte) (int, error) { return 0, broken })
	ended, end := context.WithCancel(t.Context())
	end()
	for _, test := range []struct {
		name string
		ctx  context.Context
		w    Watch
		want error
	}{
		{"no first answer", t.Context(), Watch{Ask: answers(nil, admin.ErrNotRunning), Out: io.Discard}, admin.ErrNotRunning},
		{"ended before the first answer", ended, Watch{Ask: answers(nil, context.Canceled), Out: io.Discard}, nil},
		{"output fails", t.Context(), Watch{Ask: answers(nil, busy()), Out: failing}, broken},
		{"output fails on JSON", t.Context(), Watch{Ask: answers(nil, busy()), Out: failing, JSON: true}, broken},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.w.Interval = time.Millisecond
			if err := test.w.Run(test.ctx); !errors.Is(err, test.want) || (test.want == nil) != (err == nil) {
				t.Errorf("error %v, want %v", err, test.want)
			}
		})
	}
}

// TestWatchDaemonRestarts follows a server on a socket: it is asked, it ends, and another one takes its place.
func TestWatchDaemonRestarts(t *testing.T) {
	address := filepath.Join(t.TempDir(), "admin.sock")
	stop := serve(t, address, busy())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// What was written says when to go on.
	var out strings.Builder
	steps := []struct {
		seen string
		next func()
	}{
		{"88aa00000000 fetching", stop},
		{"no answer", func() { serve(t, address, restarted()) }},
		{"v1.3.0", cancel},
	}
	write := writeFunc(func(p []byte) (int, error) {
		out.Write(p)
		if len(steps) > 0 && strings.Contains(out.String(), steps[0].seen) {
			steps[0].next()
			steps = steps[1:]
		}
		return len(p), nil
	})
	if err := (Watch{Ask: admin.NewClient(address).Status, Interval: time.Millisecond, Out: write}).Run(ctx); err != nil {
		t.Fatal(err)
	}
	if len(steps) > 0 {
		t.Errorf("%q was not written:\n%s", steps[0].seen, out.String())
	}
}

// serve answers with s on a socket until stop is called or the test ends.
func serve(t *testing.T, address string, s admin.Status) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	status := func(context.Context) (admin.Status, error) { return s, nil }
	go func() {
		served <- admin.Serve(ctx, l, admin.Options{Status: status, Log: slog.New(slog.DiscardHandler)})
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

type writeFunc func(p []byte) (int, error)

func (f writeFunc) Write(p []byte) (int, error) { return f(p) }
