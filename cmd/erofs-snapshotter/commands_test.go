package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"github.com/erofs-snapshotter/erofs-snapshotter/config"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/probe"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// call runs a command line in this process.
func call(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(append([]string{"erofs-snapshotter"}, args...), &out, &errs)
	return code, out.String(), errs.String()
}

func TestExitStatus(t *testing.T) {
	good := filepath.Join(t.TempDir(), "good.toml")
	if err := os.WriteFile(good, []byte(config.DefaultText), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		code int
		want string // in what is printed
	}{
		{nil, 0, "COMMANDS"},
		{[]string{"version"}, 0, "erofs-snapshotter "},
		{[]string{"config", "default"}, 0, config.DefaultText},
		{[]string{"config", "check", good}, 0, "good.toml: valid"},
		{[]string{"config", "check", good + ".absent"}, 1, "no such file"},
		{[]string{"config", "check"}, 2, "takes one argument"},
		{[]string{"config", "bogus"}, 2, `no command "bogus"`},
		{[]string{"bogus"}, 2, `no command "bogus"`},
		{[]string{"--bogus"}, 2, "bogus"},
		{[]string{"check", "--bogus"}, 2, "bogus"},
		{[]string{"check", "x"}, 2, "takes no arguments"},
		{[]string{"serve", "x"}, 2, "takes no arguments"},
		{[]string{"version", "x"}, 2, "takes no arguments"},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			code, stdout, stderr := call(test.args...)
			if code != test.code || !strings.Contains(stdout+stderr, test.want) {
				t.Errorf("exit status %d, want %d with %q\nstdout: %s\nstderr: %s", code, test.code, test.want, stdout, stderr)
			}
			if test.code == 0 && stderr != "" || test.code != 0 && stdout != "" {
				t.Errorf("wrong stream\nstdout: %s\nstderr: %s", stdout, stderr)
			}
		})
	}
}

func TestEveryCommandHasAnExample(t *testing.T) {
	var visit func(path []string, c *cli.Command)
	visit = func(path []string, c *cli.Command) {
		code, stdout, _ := call(append(path, "--help")...)
		if code != 0 || !strings.Contains(stdout, "Example:") {
			t.Errorf("%v --help: exit status %d, output\n%s", path, code, stdout)
		}
		for _, sub := range c.Commands {
			visit(append(path[:len(path):len(path)], sub.Name), sub)
		}
	}
	visit(nil, newCommand(nil, nil))
}

func TestCheckThisHost(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	s := newSite(t)
	code, stdout, stderr := call("--config", s.config, "check", "--json")
	var r hostReport
	if err := json.Unmarshal([]byte(stdout), &r); err != nil {
		t.Fatalf("%v\nstdout: %s\nstderr: %s", err, stdout, stderr)
	}
	if r.Root != s.root || len(r.Features) != 4 || r.Usable != (code == 0) {
		t.Errorf("exit status %d with %+v", code, r)
	}
	if _, err := os.Stat(s.root); !os.IsNotExist(err) {
		t.Errorf("check made the root directory: %v", err)
	}
	textCode, text, _ := call("--config", s.config, "check")
	if textCode != code || !strings.Contains(text, s.root) {
		t.Errorf("exit status %d as text, %d as JSON; text:\n%s", textCode, code, text)
	}
}

func TestAssess(t *testing.T) {
	no := fmt.Errorf("x: %w", probe.ErrNotSupported)
	unknown := errors.New("x: could not tell")
	for _, test := range []struct {
		name                string
		configured          string
		file, loop, overlay error
		filesystem          string
		mode                string
		usable              bool
		advice              string
	}{
		{"new kernel", "auto", nil, nil, nil, "ext4", "file", true, ""},
		{"old kernel", "auto", no, nil, nil, "ext4", "loop", true, "6.12"},
		{"loop wanted", "loop", nil, nil, nil, "ext4", "loop", true, ""},
		{"file wanted on an old kernel", "file", no, nil, nil, "ext4", "", false, `set mount.mode = "auto"`},
		{"no erofs", "auto", no, no, no, "ext4", "", false, "modprobe erofs"},
		{"no overlay", "auto", nil, nil, no, "nfs", "file", false, "filesystem that overlayfs takes"},
		{"not root", "auto", unknown, unknown, unknown, "ext4", "", false, "run as root"},
		{"in memory", "auto", no, nil, nil, "tmpfs", "loop", true, "lost at reboot"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := hostReport{Filesystem: test.filesystem, Features: []feature{
				newFeature(featureFile, test.file), newFeature(featureLoop, test.loop), newFeature(featureOverlay, test.overlay),
			}}
			r.assess(test.configured)
			advice := strings.Join(r.Advice, "\n")
			if r.Mode != test.mode || r.Usable != test.usable || !strings.Contains(advice, test.advice) || test.advice == "" && advice != "" {
				t.Errorf("got mode %q, usable %v, advice %q", r.Mode, r.Usable, advice)
			}
		})
	}
}

func TestEverySettingReachesTheDaemon(t *testing.T) {
	for _, mode := range []string{"auto", "file", "loop"} {
		if _, ok := mountModes[mode]; !ok {
			t.Errorf("mount.mode %q is not known here", mode)
		}
	}
	for _, level := range []string{"debug", "info", "warn", "error"} {
		newLogger(nil, config.Log{Level: level})
	}
	want := converter.Limits{FileBytes: 1, LayerBytes: 2, StreamBytes: 3, Inodes: 4, MetadataBytes: 5}
	if got := limits(config.Limits{FileSize: config.Size{Bytes: 1}, LayerSize: config.Size{Bytes: 2}, StreamSize: config.Size{Bytes: 3}, Inodes: 4, MetadataSize: config.Size{Bytes: 5}}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestLogFormats(t *testing.T) {
	var b bytes.Buffer
	log := newLogger(&b, config.Log{Level: "warn", Format: "json"})
	log.Info("quiet")
	log.Warn("loud", "layer", "l")
	var line struct{ Msg, Layer string }
	if err := json.Unmarshal(b.Bytes(), &line); err != nil || line.Msg != "loud" || line.Layer != "l" {
		t.Errorf("got %q: %v", b.String(), err)
	}
}

func TestDaemonEndsWhenItsWorkFails(t *testing.T) {
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	work := func(context.Context) error { return broken }
	err = runServer(t.Context(), grpc.NewServer(), health.NewServer(), listener, work, slog.New(slog.DiscardHandler))
	if !errors.Is(err, broken) {
		t.Errorf("got %v, want the failure of the work", err)
	}
}
