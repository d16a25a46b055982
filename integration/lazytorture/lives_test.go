package lazytorture

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// killAfter and killUntil are when a life ends, counted from its first answer.
	killAfter, killUntil = 10 * time.Millisecond, 50 * time.Millisecond
	// Of so many lives one is ended in order, or is killed before its first answer.
	oneIsOrderly, oneIsShort = 13, 17
)

// habits are how long lives are besides.
type habits struct {
	// oneIsLong is of how many lives one takes up to long more: time for what came in it to be recorded, or to fail.
	oneIsLong int
	long      time.Duration
	// idle is the life in which nobody gets an answer.
	idle time.Duration
	// stretch is how much longer all lives are; 0 is 1.
	stretch time.Duration
}

// lives starts processes that serve, one after another, and ends them.
type lives struct {
	habits
	o     lifeOptions
	log   *os.File // of all lives
	fail  func(error)
	heard func(what string, words []string) // what is not about the life itself

	// connecting is held while a life connects to the keeper: until then nobody touches what that holds.
	connecting sync.Mutex
	over       chan struct{} // closed when there are no more

	mu       sync.Mutex
	spare    bool // the life that is not ended
	wants    map[string]string
	mounted  chan struct{} // closed and replaced when something is mounted
	current  *process
	killed   int // after the first answer, before anything else
	others   int
	counts   counts
	starting time.Duration // of all lives, to "ready"
	asking   time.Duration // from then to the first answer
}

type counts struct{ inherited, late, refused, notices, asked int }

// process is a life, as seen from outside.
type process struct {
	cmd      *exec.Cmd
	stdin    io.WriteCloser
	ready    chan struct{}
	answered chan struct{}
	ended    chan struct{} // its output was read
	counts   counts        // guarded by lives.mu
}

func newLives(h habits, o lifeOptions, log *os.File, fail func(error)) *lives {
	h.stretch = max(h.stretch, 1)
	return &lives{habits: h, o: o, log: log, fail: fail, wants: map[string]string{}, mounted: make(chan struct{}), over: make(chan struct{})}
}

// spawn starts a process that waits until it is told to begin.
func (l *lives) spawn() (*process, error) {
	p := &process{cmd: exec.Command(os.Args[0]), ready: make(chan struct{}), answered: make(chan struct{}), ended: make(chan struct{})}
	l.mu.Lock()
	p.cmd.Env = l.o.env("life")
	l.mu.Unlock()
	p.cmd.Stderr = l.log
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			l.hear(p, strings.Fields(lines.Text()))
		}
	}()
	return p, nil
}

// hear takes what a life says.
func (l *lives) hear(p *process, words []string) {
	switch words[0] {
	case "ready":
		close(p.ready)
	case "answered":
		close(p.answered)
	case "counts":
		l.mu.Lock()
		defer l.mu.Unlock()
		c := &p.counts
		if _, err := fmt.Sscan(strings.Join(words[1:], " "), &c.inherited, &c.late, &c.refused, &c.notices, &c.asked); err != nil {
			l.fail(err)
		}
	case "mounted":
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.wants, words[1])
		close(l.mounted)
		l.mounted = make(chan struct{})
	case "complete":
		l.heard(words[0], words[1:])
		l.tell(p, "recorded", words[1])
	default:
		l.heard(words[0], words[1:])
	}
}

// run has life after life until ctx ends, and ends the last one.
func (l *lives) run(ctx context.Context) {
	defer close(l.over)
	next, err := l.spawn()
	for err == nil && ctx.Err() == nil {
		p := next
		if err = l.begin(ctx, p); err != nil {
			break
		}
		if next, err = l.spawn(); err == nil { // it is there when it is needed
			err = l.end(p, l.live(ctx, p))
		}
	}
	if next != nil {
		next.stdin.Close()
		next.cmd.Wait()
	}
	if err != nil && ctx.Err() == nil {
		l.fail(err)
	}
}

// begin has a process take over.
func (l *lives) begin(ctx context.Context, p *process) error {
	l.connecting.Lock()
	defer l.connecting.Unlock()
	began := time.Now()
	l.tell(p, "begin")
	select {
	case <-p.ready:
	case <-p.ended:
		return fmt.Errorf("a life ended before it was ready: %w", p.cmd.Wait())
	case <-time.After(patient):
		_ = p.cmd.Process.Signal(unix.SIGQUIT) // its stacks are in the log
		return fmt.Errorf("a life was not ready within %v: %w", patient, p.cmd.Wait())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.starting += time.Since(began)
	l.current = p
	for target, dir := range l.wants {
		l.tell(p, "mount", dir, target)
	}
	return nil
}

func (l *lives) tell(p *process, words ...string) {
	// It may have been killed: then the next one is told, or sees for itself.
	_, _ = io.WriteString(p.stdin, strings.Join(words, " ")+"\n")
}

// live waits until a life is to end, and says by which signal.
func (l *lives) live(ctx context.Context, p *process) os.Signal {
	if rand.IntN(oneIsShort) == 0 {
		l.count(&l.others)
		time.Sleep(rand.N(killAfter * l.stretch))
		return unix.SIGKILL
	}
	began := time.Now()
	select {
	case <-p.answered:
	case <-p.ended:
		return unix.SIGKILL
	case <-time.After(l.idle):
		l.count(&l.others)
		l.spared(ctx, p)
		return unix.SIGKILL
	}
	l.mu.Lock()
	l.asking += time.Since(began)
	l.mu.Unlock()
	wait := (killAfter + rand.N(killUntil-killAfter)) * l.stretch
	if rand.IntN(l.oneIsLong) == 0 {
		wait += rand.N(l.long)
	}
	select {
	case <-time.After(wait):
	case <-p.ended:
	}
	if l.spared(ctx, p) || rand.IntN(oneIsOrderly) == 0 {
		l.count(&l.others)
		return unix.SIGTERM
	}
	l.count(&l.killed)
	return unix.SIGKILL
}

func (l *lives) count(n *int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*n++
}

// spared waits while no life is to end.
func (l *lives) spared(ctx context.Context, p *process) (waited bool) {
	for ctx.Err() == nil {
		l.mu.Lock()
		spare := l.spare
		l.mu.Unlock()
		if !spare {
			return waited
		}
		waited = true
		select {
		case <-p.ended:
			return waited
		case <-time.After(5 * time.Millisecond):
		}
	}
	return waited
}

// end ends a life, and says if it has ended by itself.
func (l *lives) end(p *process, by os.Signal) error {
	select {
	case <-p.ended:
		return fmt.Errorf("a life ended by itself: %v", p.cmd.Wait())
	default:
	}
	l.mu.Lock()
	l.current = nil
	l.mu.Unlock()
	if err := p.cmd.Process.Signal(by); err != nil {
		return err
	}
	select {
	case <-p.ended:
	case <-time.After(patient):
		_ = p.cmd.Process.Signal(unix.SIGQUIT)
		return fmt.Errorf("a life did not end within %v of %v", patient, by)
	}
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if killed := errors.As(err, &exit) && exit.ExitCode() == -1; killed != (by == unix.SIGKILL) {
		return fmt.Errorf("a life that got signal %v ended in another way: %v", by, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.inherited += p.counts.inherited
	l.counts.late += p.counts.late
	l.counts.refused += p.counts.refused
	l.counts.notices += p.counts.notices
	l.counts.asked += p.counts.asked
	return nil
}

func (l *lives) kills() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.killed
}

// setSpare has the life that there is, or the next one, go on until it is called again.
func (l *lives) setSpare(spare bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spare = spare
	l.o.Delay = !spare
}

// mount has instances mounted, by whichever lives it takes. It gets directories by their targets.
func (l *lives) mount(targets map[string]string) error {
	l.mu.Lock()
	maps.Copy(l.wants, targets)
	if l.current != nil {
		for target, dir := range targets {
			l.tell(l.current, "mount", dir, target)
		}
	}
	l.mu.Unlock()
	limit := time.After(patient)
	for {
		l.mu.Lock()
		left, mounted := slices.Collect(maps.Keys(l.wants)), l.mounted
		l.mu.Unlock()
		if len(left) == 0 {
			return nil
		}
		select {
		case <-mounted:
		case <-l.over:
			return errors.New("nobody is left who mounts")
		case <-limit:
			return fmt.Errorf("not mounted within %v: %q", patient, left)
		}
	}
}

// left tells the life that there is, if there is one, that an instance has left the store. A later one sees it.
func (l *lives) left(name, dir string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current != nil {
		l.tell(l.current, "left", name, dir)
	}
}
