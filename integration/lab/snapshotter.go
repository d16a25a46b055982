package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"text/template"
)

// StartSnapshotter starts our daemon and waits until it answers. It may be called again after Stop- or KillSnapshotter.
func (l *Lab) StartSnapshotter(ctx context.Context) error {
	if l.snapshotter.running() {
		return errors.New("the snapshotter runs already")
	}
	program, err := l.daemon()
	if err != nil {
		return err
	}
	config := l.path("etc/snapshotter.toml")
	own, err := l.expand(l.opts.DaemonConfig)
	if err != nil {
		return fmt.Errorf("Options.DaemonConfig: %w", err)
	}
	text := fmt.Sprintf("root = %q\naddress = %q\n%s\n[containerd]\naddress = %q\n",
		l.SnapshotterRoot(), l.SnapshotterAddress(), inLazyMode(own, LazyMode()), l.ContainerdAddress())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	if l.snapshotter, err = l.startProcess("snapshotter", program, "--config", config, "serve"); err != nil {
		return err
	}
	return l.snapshotter.ready(ctx, listens(l.SnapshotterAddress()))
}

// Check is what the daemon's program says of this host, with the daemon's configuration.
func (l *Lab) Check(ctx context.Context) (string, error) {
	program, err := l.daemon()
	if err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, program, "--config", l.path("etc/snapshotter.toml"), "check").CombinedOutput()
	return string(out), err
}

// listens asks whether somebody does on a socket.
func listens(address string) func(context.Context) error {
	return func(ctx context.Context) error {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
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

// Status asks our daemon for its status and decodes the answer, which docs/monitoring.md describes, into a pointer.
func (l *Lab) Status(ctx context.Context, status any) error {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", l.path("admin.sock"))
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://daemon/v1/status", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status of the daemon: %s", resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(status)
}
