package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

// answerStatus serves a status on an admin socket until the test ends, and returns a configuration that names it.
func answerStatus(t *testing.T) (configFile string) {
	t.Helper()
	dir := t.TempDir()
	address, configFile := filepath.Join(dir, "admin.sock"), filepath.Join(dir, "config.toml")
	if err := os.WriteFile(configFile, fmt.Appendf(nil, "[admin]\naddress = %q\n", address), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := listen(address)
	if err != nil {
		t.Fatal(err)
	}
	s := admin.Status{Version: "v9", Started: time.Now(), Root: "/somewhere", Layers: []admin.Layer{{
		Instance: "0123456789abcdef", Digest: "sha256:4e6753a2b1c0ffee", Kind: "erofs", State: admin.Complete, DiskBytes: 1 << 20, Created: time.Now(),
	}, {
		Instance: "1123456789abcdef", Digest: "sha256:88aa", Kind: "erofs", State: admin.Partial,
		Lazy: &admin.Lazy{Format: "estargz", Bytes: 3 * 4096, PresentBytes: 4096, Extents: 3, PresentExtents: 1},
	}, {
		Instance: "2123456789abcdef", Kind: "directory", State: admin.Complete,
	}}}
	fill := func(_ context.Context, _ string, cells int) ([]float64, error) {
		return append([]float64{1}, make([]float64, cells-1)...), nil
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	status := func(context.Context) (admin.Status, error) { return s, nil }
	go func() {
		served <- admin.Serve(ctx, l, admin.Options{Status: status, Map: fill, Log: slog.New(slog.DiscardHandler)})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return configFile
}

func TestStatus(t *testing.T) {
	configFile := answerStatus(t)
	code, stdout, stderr := call("--config", configFile, "status")
	if code != 0 || !strings.Contains(stdout, "v9") || !strings.Contains(stdout, "4e6753a2b1c0") || stderr != "" {
		t.Errorf("exit status %d\nstdout: %s\nstderr: %s", code, stdout, stderr)
	}
	code, stdout, _ = call("--config", configFile, "status", "--json")
	var s admin.Status
	if err := json.Unmarshal([]byte(stdout), &s); err != nil || code != 0 || s.Format != admin.Format || s.Root != "/somewhere" || len(s.Layers) != 3 {
		t.Errorf("exit status %d, error %v\nstdout: %s", code, err, stdout)
	}
}

func TestStatusFails(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(absent, []byte("[admin]\naddress = \"/nonexistent/admin.sock\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"status"}, 1, "admin socket /nonexistent/admin.sock: the daemon is not running"},
		{[]string{"status", "--watch"}, 1, "the daemon is not running"},
		{[]string{"status", "x"}, 2, "takes no arguments"},
		{[]string{"status", "--watch", "--interval", "1ms"}, 2, "below 100ms"},
		{[]string{"status", "--map", ""}, 2, "--map needs"},
		{[]string{"status", "--map", "x", "--watch"}, 2, "do not go together"},
		{[]string{"status", "--out", "x.svg"}, 2, "--out is for --map"},
		{[]string{"status", "--map", "x", "--out", "x.svg", "--json"}, 2, "do not go together"},
		{[]string{"status", "--map", "x", "--out", "x.jpg"}, 2, ".svg or .png"},
		{[]string{"status", "--map", "x"}, 1, "the daemon is not running"},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			code, stdout, stderr := call(append([]string{"--config", absent}, test.args...)...)
			if code != test.code || !strings.Contains(stderr, test.want) || stdout != "" {
				t.Errorf("exit status %d, want %d with %q\nstdout: %s\nstderr: %s", code, test.code, test.want, stdout, stderr)
			}
		})
	}
}

// TestStatusWatchEndsBySignal runs the program itself: ctrl-C is a success.
func TestStatusWatchEndsBySignal(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := program(ctx, "--config", answerStatus(t), "status", "--watch", "--json")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	answers := json.NewDecoder(out)
	for range 2 {
		var s admin.Status
		if err := answers.Decode(&s); err != nil || s.Version != "v9" {
			t.Errorf("got %+v, error %v", s, err)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, errs.String())
	}
}
