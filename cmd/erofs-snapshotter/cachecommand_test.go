package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

// serveNode answers for a node on an admin socket until the test ends, and returns a configuration that names it.
func serveNode(n *node) (configFile string) {
	n.t.Helper()
	dir := n.t.TempDir()
	address, configFile := filepath.Join(dir, "admin.sock"), filepath.Join(dir, "config.toml")
	n.must(os.WriteFile(configFile, fmt.Appendf(nil, "[admin]\naddress = %q\n", address), 0o600))
	l, err := listen(address)
	n.must(err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(n.t.Context()))
	served := make(chan error, 1)
	status := func(context.Context) (s admin.Status, err error) {
		for _, inst := range n.list {
			s.Layers = append(s.Layers, admin.Layer{Instance: string(inst.ID), Digest: string(inst.Layer), State: admin.Partial, Kind: "erofs"})
		}
		return s, nil
	}
	go func() {
		served <- admin.Serve(ctx, l, admin.Options{Status: status, Export: n.export, Import: n.imports, Log: slog.New(slog.DiscardHandler)})
	}()
	n.t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			n.t.Error(err)
		}
	})
	return configFile
}

func TestCacheCommands(t *testing.T) {
	a, b := newNode(t), newNode(t)
	first := a.pull(1, even)
	a.pull(2, even)
	b.pull(1, none)
	from, to := serveNode(a), serveNode(b)
	dir := t.TempDir()
	file := filepath.Join(dir, "cache.tar")
	code, stdout, stderr := call("--config", from, "cache", "export", "--output", file)
	if code != 0 || !strings.Contains(stdout, "2 layers exported, 100 (") || stderr != "" {
		t.Fatalf("exit status %d\nstdout: %s\nstderr: %s", code, stdout, stderr)
	}
	if fi, err := os.Stat(file); err != nil || fi.Mode() != 0o600 {
		t.Errorf("the file: %v, %v", fi.Mode(), err)
	}
	whole, err := os.ReadFile(file)
	a.must(err)
	for _, test := range []struct {
		args []string
		want string // on stderr
		same bool   // as the file
	}{
		{nil, "2 layers exported", true},
		{[]string{"--output", "-", "--json"}, `"digest": "sha256:`, true},
		{[]string{"--layer", string(a.list[0].Layer)}, "1 layer exported, 50 (", false},
		{[]string{"--layer", string(first[:10]), "--image", "image2"}, "2 layers exported", true},
	} {
		code, stdout, stderr = call(append([]string{"--config", from, "cache", "export"}, test.args...)...)
		if code != 0 || !strings.Contains(stderr, test.want) || (stdout == string(whole)) != test.same {
			t.Errorf("%q: exit status %d, %d bytes\nstderr: %s", test.args, code, len(stdout), stderr)
		}
	}
	code, stdout, stderr = call("--config", to, "cache", "import", file)
	if code != 0 || !strings.Contains(stdout, "50 (") || !strings.Contains(stdout, "pull the image first") || stderr != "" {
		t.Errorf("exit status %d\nstdout: %s\nstderr: %s", code, stdout, stderr)
	}
	if n := b.has(1); n != 50 {
		t.Errorf("%d extents were imported", n)
	}
	a.must(os.WriteFile(file, whole[:len(whole)/2], 0o600))
	code, stdout, stderr = call("--config", to, "cache", "import", "--json", file)
	if code != 1 || !strings.Contains(stdout, `"error": "the export is cut off"`) || !strings.Contains(stderr, "the rest was not imported: the export is cut off") {
		t.Errorf("exit status %d\nstdout: %s\nstderr: %s", code, stdout, stderr)
	}
}

// TestExportToFullDisk: the error is that of the disk, and nothing that looks like an export stays.
func TestExportToFullDisk(t *testing.T) {
	n := newNode(t)
	n.pull(1, all)
	configFile := serveNode(n)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	n.must(err)
	defer full.Close()
	var stderr bytes.Buffer
	if code := run([]string{"erofs-snapshotter", "--config", configFile, "cache", "export"}, full, &stderr); code != 1 || !strings.Contains(stderr.String(), "no space left") {
		t.Errorf("exit status %d\nstderr: %s", code, &stderr)
	}
	if code, _, stderr := call("--config", configFile, "cache", "export", "--output", "/dev/full"); code != 1 || !strings.Contains(stderr, "no space left") {
		t.Errorf("exit status %d\nstderr: %s", code, stderr)
	}
}

// TestCacheAtTerminal: nothing is written to one, or read from it.
func TestCacheAtTerminal(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	var stderr bytes.Buffer
	if code := run([]string{"erofs-snapshotter", "cache", "export"}, terminal, &stderr); code != 2 || !strings.Contains(stderr.String(), "nothing for a terminal") {
		t.Errorf("exit status %d\nstderr: %s", code, &stderr)
	}
	root := newCommand(io.Discard, io.Discard)
	root.Reader = terminal
	if err := root.Run(t.Context(), []string{"erofs-snapshotter", "cache", "import", "-"}); !errors.As(err, new(usageError)) {
		t.Errorf("error %v", err)
	}
}

func TestCacheCommandsFail(t *testing.T) {
	n := newNode(t)
	n.pull(1, even)
	configFile := serveNode(n)
	dir := t.TempDir()
	absent := filepath.Join(dir, "absent.toml")
	n.must(os.WriteFile(absent, []byte("[admin]\naddress = \"/nonexistent/admin.sock\"\n"), 0o600))
	kept := filepath.Join(dir, "kept")
	n.must(os.WriteFile(kept, []byte("as it was"), 0o600))
	compressed := filepath.Join(t.TempDir(), "cache.tar.zst")
	n.must(os.WriteFile(compressed, []byte("\x28\xb5\x2f\xfdand more"), 0o600))
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--config", configFile, "cache", "bogus"}, 2, `no command "bogus"`},
		{[]string{"--config", configFile, "cache", "export", "x"}, 2, "takes no arguments"},
		{[]string{"--config", configFile, "cache", "export", "--output", ""}, 2, "--output needs"},
		{[]string{"--config", configFile, "cache", "import"}, 2, "takes one file"},
		{[]string{"--config", absent, "cache", "export"}, 1, "the daemon is not running"},
		{[]string{"--config", absent, "cache", "import", kept}, 1, "the daemon is not running"},
		{[]string{"--config", absent, "cache", "export", "--output", kept}, 1, "the daemon is not running"},
		{[]string{"--config", configFile, "cache", "export", "--output", kept, "--image", "other"}, 1, `no lazy layer was pulled by the name "other"`},
		{[]string{"--config", configFile, "cache", "export", "--layer", "zz"}, 1, `no layer is named "zz"`},
		{[]string{"--config", configFile, "cache", "export", "--output", filepath.Join(dir, "no", "file")}, 1, "no such file"},
		{[]string{"--config", configFile, "cache", "import", filepath.Join(dir, "nothing")}, 1, "no such file"},
		{[]string{"--config", configFile, "cache", "import", kept}, 1, "not an export of the cache"},
		{[]string{"--config", configFile, "cache", "import", compressed}, 1, "zstd -dc FILE | erofs-snapshotter cache import -"},
	} {
		code, stdout, stderr := call(test.args...)
		if code != test.code || !strings.Contains(stderr, test.want) {
			t.Errorf("%q: exit status %d, want %d with %q\nstdout: %s\nstderr: %s", test.args[2:], code, test.code, test.want, stdout, stderr)
		}
	}
	if b, err := os.ReadFile(kept); err != nil || string(b) != "as it was" {
		t.Errorf("a file after an export that failed: %q, %v", b, err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 2 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}
