package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// Times that a healthy machine never needs; they turn a hang into an error.
var (
	startTimeout = 30 * time.Second * testenv.Slow
	stopTimeout  = 20 * time.Second * testenv.Slow
	killTimeout  = 10 * time.Second * testenv.Slow
)

const pollInterval = 20 * time.Millisecond

// process is a daemon that the lab started.
type process struct {
	name string
	cmd  *exec.Cmd
	// ended is closed after the process was waited for; err may be read then.
	ended chan struct{}
	err   error
}

// startProcess starts a daemon. Its output is appended to the log NAME.log.
func (l *Lab) startProcess(name, path string, args ...string) (*process, error) {
	log, err := os.OpenFile(l.logPath(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own copy
	p := &process{name: name, cmd: exec.Command(path, args...), ended: make(chan struct{})}
	p.cmd.Env = l.environ()
	p.cmd.Dir = l.Dir
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt from the terminal is for us, Close tells the others
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// ready waits until probe succeeds. It gives up when the process ends, when the context does, and after startTimeout.
func (p *process) ready(ctx context.Context, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("%s ended at its start: %w", p.name, p.exit())
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", p.name, err)
		case <-time.After(pollInterval):
		}
	}
}

func (p *process) exit() error {
	if p.err == nil {
		return errors.New("exit status 0")
	}
	return p.err
}

// running says whether the process has not ended.
func (p *process) running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// stop asks the process to end and waits. A process that does not is killed, and that is an error.
func (p *process) stop() error {
	if !p.running() {
		return nil
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(stopTimeout):
		return errors.Join(fmt.Errorf("%s did not end within %s of SIGTERM", p.name, stopTimeout), p.kill())
	}
}

// kill ends the process without a warning.
func (p *process) kill() error {
	if !p.running() {
		return nil
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", p.name, err)
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(killTimeout):
		return fmt.Errorf("%s (pid %d) is still there %s after SIGKILL", p.name, p.cmd.Process.Pid, killTimeout)
	}
}

// output runs a program to its end and returns its standard output. The error shows standard error.
func (l *Lab) output(ctx context.Context, path string, args ...string) (string, error) {
	return run(l.command(ctx, path, args...))
}

func (l *Lab) command(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = l.environ()
	cmd.WaitDelay = killTimeout // a container may have inherited the pipes
	return cmd
}

func run(cmd *exec.Cmd) (string, error) {
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		command := filepath.Base(cmd.Path) + " " + strings.Join(cmd.Args[1:], " ")
		return stdout.String(), fmt.Errorf("%s: %w: %s", command, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// logTails shows the last lines of every log.
func (l *Lab) logTails() string {
	const lines = 25
	var s strings.Builder
	logs, _ := filepath.Glob(l.logPath("*"))
	for _, path := range logs {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
		fmt.Fprintf(&s, "\n--- last lines of %s\n%s", filepath.Base(path), strings.Join(all[max(0, len(all)-lines):], "\n"))
	}
	return s.String()
}
