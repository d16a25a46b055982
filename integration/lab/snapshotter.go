package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"text/template"
)

// StartSnapshotter starts our daemon and waits until it answers. It may be called again after Stop- or KillSnapshotter.
func (l *Lab) StartSnapshotter(ctx context.Context) error {
	if l.snapshotter.running() {
		return errors.New("the snapshotter runs already")
	}
	if l.daemonPath == "" {
		path, err := l.daemonProgram()
		if err != nil {
			return err
		}
		l.daemonPath = path
	}
	config := l.path("etc/snapshotter.toml")
	own, err := l.expand(l.opts.DaemonConfig)
	if err != nil {
		return fmt.Errorf("Options.DaemonConfig: %w", err)
	}
	text := fmt.Sprintf("root = %q\naddress = %q\n%s\n[containerd]\naddress = %q\n",
		l.SnapshotterRoot(), l.SnapshotterAddress(), own, l.ContainerdAddress())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	if l.snapshotter, err = l.startProcess("snapshotter", l.daemonPath, "--config", config, "serve"); err != nil {
		return err
	}
	return l.snapshotter.ready(ctx, func(ctx context.Context) error {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", l.SnapshotterAddress())
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// expand executes a template with the lab's methods and fields.
func (l *Lab) expand(text string) (string, error) {
	t, err := template.New("").Parse(text)
	if err != nil {
		return "", err
	}
	var s strings.Builder
	err = t.Execute(&s, l)
	return s.String(), err
}

// StopSnapshotter asks our daemon to end and waits for it.
func (l *Lab) StopSnapshotter() error { return l.snapshotter.stop() }

// KillSnapshotter ends our daemon with SIGKILL.
func (l *Lab) KillSnapshotter() error { return l.snapshotter.kill() }

// SnapshotterPID is the process id of our daemon, 0 if it does not run.
func (l *Lab) SnapshotterPID() int {
	if !l.snapshotter.running() {
		return 0
	}
	return l.snapshotter.cmd.Process.Pid
}

func (l *Lab) daemonProgram() (string, error) {
	if l.opts.Daemon != "" {
		return filepath.Abs(l.opts.Daemon)
	}
	return buildDaemon()
}

// testDaemon is the name of the daemon that was built for tests.
const testDaemon = "erofs-snapshotter-test"

// buildDaemon builds the daemon once per process, so that tests never run one that is older than the sources.
var buildDaemon = sync.OnceValues(func() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	path := Program(testDaemon)
	// Renamed into place: another process may be running the one that is there.
	part := fmt.Sprintf("%s.%d", path, os.Getpid())
	defer os.Remove(part)
	cmd := exec.Command("go", "build", "-trimpath", "-o", part, "./cmd/erofs-snapshotter")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the daemon: %w\n%s", err, out)
	}
	return path, os.Rename(part, path)
})

// moduleRoot is the directory of the checkout's go.mod.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("no go.mod at or above %s", dir)
		}
	}
}
