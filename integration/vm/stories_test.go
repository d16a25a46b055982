package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestPlan(t *testing.T) {
	names := func(runs []run) (names []string) {
		for _, r := range runs {
			names = append(names, r.name())
		}
		return names
	}
	for _, c := range []struct {
		modes, pattern string
		want           []string
	}{
		{"", ".", []string{"6.1 eager", "6.1 fscache", "6.12 eager", "6.12 fscache", "7.2 eager", "7.2 fanotify"}},
		{"", "short", []string{"6.1 eager", "6.12 fscache", "7.2 fanotify"}},
		{"fscache", "^keeper hangs$", []string{"6.1 fscache", "6.12 fscache"}},
		{"eager", "^keeper hangs$", nil},
	} {
		runs, err := plan(kernels, c.modes, c.pattern)
		if got := names(runs); !slices.Equal(got, c.want) || (err != nil) != (c.want == nil) {
			t.Errorf("modes %q, stories %q: got %q, %v, want %q", c.modes, c.pattern, got, err, c.want)
		}
		for _, r := range runs {
			if want := strings.Count(shortStories[r.mode.name], "|") + 1; c.pattern == "short" && len(r.stories) != want {
				t.Errorf("%s has %d short stories, want %d", r.name(), len(r.stories), want)
			}
		}
	}
}

// TestScript runs a script with programs that say what they got.
func TestScript(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"integration.test":                   "#!/bin/sh\necho \"$EROFS_TEST_LAZY_MODE|$EROFS_TEST_LONG|$*|$PWD\"\n",
		"product/erofs-snapshotter":          "#!/bin/sh\necho \"$*\"\n",
		"repository's/integration/testdata/": "",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if text != "" {
			if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := run{kernels[0], modes[2], []story{{name: "one", pkg: "integration", test: "^TestOne$/^a b$", env: long}}}
	repo := filepath.Join(dir, "repository's")
	script := strings.ReplaceAll(r.script(place{repo: repo, work: dir, home: "/root", path: os.Getenv("PATH"), cache: "/cache"}, []int{0}), "/run/check.toml", filepath.Join(dir, "check.toml"))
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-euc", `story() { name=$1; cd "$2"; shift 2; echo "$name:"; "$@"; }`+"\n"+script)
	out, err := cmd.CombinedOutput()
	want := "check:\n--config " + dir + "/check.toml check\nstory-0:\n" +
		"fscache|1|-test.v -test.timeout=40m0s -test.run=^TestOne$/^a b$|" + repo + "/integration\n"
	if err != nil || string(out) != want {
		t.Errorf("got %q, %v, want %q", out, err, want)
	}
}

// TestScriptsParse asks the shell whether the first process of a machine is one for it.
func TestScriptsParse(t *testing.T) {
	for _, name := range []string{"init-host.sh", "init.sh"} {
		if out, err := exec.CommandContext(t.Context(), "/bin/sh", "-n", name).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}

func TestResult(t *testing.T) {
	r := run{stories: make([]story, 4)}
	o := understand("--- PASS: TestOne (1s)\n=== vm: end story-0 0 after 95 s\n--- FAIL: TestTwo (1s)\n=== vm: end story-1 1 after 3 s\n" +
		"--- SKIP: TestThree (0s)\n=== vm: end story-2 0 after 1 s\n")
	for i, want := range []string{(95 * time.Second).String(), "failed", "nothing ran", "did not end"} {
		if got := r.result(o, i); got != want {
			t.Errorf("story %d: got %q, want %q", i, got, want)
		}
	}
	r.stories = []story{{name: "one"}, {name: "two"}, {name: "three"}, {name: "four"}}
	if err := r.ran(o); err == nil || !strings.Contains(err.Error(), "three") || strings.Contains(err.Error(), "one") || strings.Contains(err.Error(), "two") {
		t.Errorf("what was skipped: %v", err)
	}
}

func TestChoice(t *testing.T) {
	const check = "root   /x (ext4)\nloading on demand            no\n  not supported: x\nmount mode that would be used: loop\n"
	if got := choice(check); got != "loop; no" {
		t.Errorf("got %q", got)
	}
	if got := choice(check + "missing data would be asked for by fscache: it works here\n"); got != "loop; fscache" {
		t.Errorf("got %q", got)
	}
	if got := choice(""); got != "?" {
		t.Errorf("got %q", got)
	}
}

// TestRecord: results of one run do not touch those of others; rows and columns have an order of their own.
func TestRecord(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kernels.md")
	if err := os.WriteFile(file, []byte("before\n\n"+tableMark+"\n\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	first := run{kernels[1], modes[2], []story{allStories[6], allStories[5]}}
	second := run{kernels[0], modes[0], []story{allStories[0]}}
	passed := "--- PASS: TestOne (1s)\n=== vm: end story-0 0 after 95 s\n--- PASS: TestTwo (1s)\n=== vm: end story-1 0 after 5 s\n=== vm: release 6.12.1\n"
	for _, r := range []struct {
		run
		printed string
	}{{first, passed}, {second, "=== vm: release 6.1.9\n"}, {run{kernels[1], modes[2], []story{allStories[6]}}, "=== vm: release 6.12.2\n"}} {
		if err := r.record(file, understand(r.printed)); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	today := time.Now().Format(time.DateOnly)
	want := "before\n\n" + tableMark + "\n| | 6.1 eager | 6.12 fscache |\n|---|---|---|\n| date | " + today + " | " + today + " |\n| kernel | 6.1.9 | 6.12.2 |\n" +
		"| " + rowChoice + " | ? | ? |\n| " + allStories[0].name + " | did not end |  |\n| " + allStories[5].name + " |  | 5s |\n| " +
		allStories[6].name + " |  | did not end |\n\nafter\n"
	if string(b) != want {
		t.Errorf("got\n%s\nwant\n%s", b, want)
	}
}
