package snapshotter

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/startup"
)

// startups are the calls of Options.Startup, each of which ends when the test says so.
type startups struct {
	begun chan startup.Program
	end   chan struct{}
	read  func(root *os.File) error
}

func newStartups() *startups {
	return &startups{begun: make(chan startup.Program, 100), end: make(chan struct{})}
}

func (st *startups) startup(ctx context.Context, root *os.File, p startup.Program) (startup.Report, error) {
	var err error
	if st.read != nil {
		err = st.read(root)
	}
	st.begun <- p
	select {
	case <-st.end:
	case <-ctx.Done():
	}
	return startup.Report{}, err
}

func (st *startups) next(t *testing.T) startup.Program {
	t.Helper()
	select {
	case p := <-st.begun:
		return p
	case <-time.After(10 * time.Second):
		t.Fatal("nothing is read")
		panic("not reached")
	}
}

func (st *startups) none(t *testing.T) {
	t.Helper()
	select {
	case p := <-st.begun:
		t.Fatalf("%q is read", p.Args)
	case <-time.After(100 * time.Millisecond):
	}
}

// TestStartup: what an image starts is read from all of its layers when the last one was pulled, and only then.
func TestStartup(t *testing.T) {
	w := newLazyWorld(t)
	st := newStartups()
	st.read = func(root *os.File) error { // of a layer each
		for _, name := range []string{"one", "other"} {
			fd, err := unix.Openat(int(root.Fd()), name, unix.O_RDONLY, 0)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			unix.Close(fd)
		}
		return nil
	}
	opts := w.options()
	opts.Startup = st.startup
	s := start(t, opts)
	run(t, s)
	w.program = []string{"program", "argument"}
	img := w.image(lazyLayer(t), otherLayer(t))
	top := pullRemote(t, s, inNamespace(t, "default"), img)
	if p := st.next(t); len(p.Args) != 2 || p.Args[0] != "program" || p.Dir != "/dir" || len(p.Env) != 1 {
		t.Errorf("got %+v", p)
	}
	st.none(t)
	// Nothing refers to it: the image can be removed meanwhile.
	must(t, s.Remove(t.Context(), top))
	must(t, s.Cleanup(t.Context()))
	close(st.end)
}

// TestStartupOfOne: the tree of an image with one layer is that layer.
func TestStartupOfOne(t *testing.T) {
	w := newLazyWorld(t)
	st := newStartups()
	st.read = func(root *os.File) error {
		names, err := root.Readdirnames(-1)
		if len(names) != 2 {
			t.Errorf("the tree has %q", names)
		}
		return errors.Join(err, errors.New("that harms nothing"))
	}
	opts := w.options()
	opts.Startup = st.startup
	s := start(t, opts)
	stop := run(t, s)
	w.program = []string{"program"}
	w.pullLazily(s, lazyLayer(t))
	st.next(t)
	stop() // ends what is read
}

// TestNoStartup: of what is here nothing is read, nor if the image does not say what it starts.
func TestNoStartup(t *testing.T) {
	w := newLazyWorld(t)
	st := newStartups()
	opts := w.options()
	opts.Startup = st.startup
	s := start(t, opts)
	run(t, s)
	w.pullLazily(s, lazyLayer(t))
	st.none(t)

	w.program = []string{"program"}
	opts.Root = filepath.Join(newRoot(t), "eager")
	opts.Lazy = nil
	eager := start(t, opts)
	run(t, eager)
	pullRemote(t, eager, inNamespace(t, "default"), w.image(lazyLayer(t)))
	st.none(t)
}

// TestManyStartups: a few at a time, a few wait, and nobody waits for them.
func TestManyStartups(t *testing.T) {
	w := newLazyWorld(t)
	st := newStartups()
	opts := w.options()
	opts.Startup = st.startup
	s := start(t, opts)
	w.program = []string{"program"}
	top, _ := w.pullLazily(s, lazyLayer(t))
	for range 2 * maxPulled {
		s.startLater(pulled{name: top, program: startup.Program{Args: w.program}})
	}
	stop := run(t, s)
	for range startsAtOnce {
		st.next(t)
	}
	st.none(t)
	close(st.end)
	for range maxPulled - startsAtOnce {
		st.next(t)
	}
	st.none(t)
	stop()
}
