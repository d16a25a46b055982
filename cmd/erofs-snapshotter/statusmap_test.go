package main

import (
	"encoding/json"
	"errors"
	"image/png"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

func TestStatusMap(t *testing.T) {
	configFile := answerStatus(t)
	for _, test := range []struct {
		layer  string
		code   int
		stdout string
		stderr string
	}{
		{"88aa", 0, "33% present: 4.0 KiB of 12.0 KiB, 1 of 3 extents", ""},
		{"sha256:88aa", 0, "  █··\n", ""},
		{"11", 0, "instance 1123456789ab", ""},
		{"4e67", 0, "100% present", ""}, // never was lazy
		{"2123456789abcdef", 1, "", "is a directory"},
		{"77", 1, "", "1123456789ab  (partial erofs, digest 88aa, from -)"},
	} {
		code, stdout, stderr := call("--config", configFile, "status", "--map", test.layer)
		if code != test.code || !strings.Contains(stdout, test.stdout) || !strings.Contains(stderr, test.stderr) || (stderr == "") != (test.code == 0) {
			t.Errorf("%s: exit status %d\nstdout: %s\nstderr: %s", test.layer, code, stdout, stderr)
		}
	}
	code, stdout, stderr := call("--config", configFile, "status", "--map", "88aa", "--json")
	var m admin.Map
	if err := json.Unmarshal([]byte(stdout), &m); err != nil || code != 0 || m.Instance != "1123456789abcdef" || !slices.Equal(m.Cells, []float64{1, 0, 0}) {
		t.Errorf("exit status %d, error %v\nstdout: %s\nstderr: %s", code, err, stdout, stderr)
	}
}

func TestStatusMapPicture(t *testing.T) {
	configFile, dir := answerStatus(t), t.TempDir()
	for _, name := range []string{"a.svg", "b.png"} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte("an older picture"), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, stdout, stderr := call("--config", configFile, "status", "--map", "88aa", "--out", file); code != 0 || stdout+stderr != "" {
			t.Errorf("exit status %d\nstdout: %s\nstderr: %s", code, stdout, stderr)
		}
	}
	svg, err := os.ReadFile(filepath.Join(dir, "a.svg"))
	if err != nil || !strings.HasPrefix(string(svg), "<svg ") || !strings.HasSuffix(string(svg), "</svg>\n") {
		t.Errorf("error %v: %s", err, svg)
	}
	f, err := os.Open(filepath.Join(dir, "b.png"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := png.Decode(f); err != nil {
		t.Error(err)
	}
	code, _, stderr := call("--config", configFile, "status", "--map", "88aa", "--out", filepath.Join(dir, "absent", "a.svg"))
	if code != 1 || !strings.Contains(stderr, "no such file") {
		t.Errorf("exit status %d: %s", code, stderr)
	}
}

// TestReplaceFileFails: what was there stays, and nothing else does.
func TestReplaceFileFails(t *testing.T) {
	dir, broken := t.TempDir(), errors.New("broken")
	file := filepath.Join(dir, "a.svg")
	if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := replaceFile(file, func(w io.Writer) error {
		_, err := io.WriteString(w, "half of")
		return errors.Join(err, broken)
	})
	if !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	text, err := os.ReadFile(file)
	list, listErr := os.ReadDir(dir)
	if err := errors.Join(err, listErr); err != nil || string(text) != "old" || len(list) != 1 {
		t.Errorf("%q and %d files, error %v", text, len(list), err)
	}
}
