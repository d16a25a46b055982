package main

import (
	"archive/tar"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// TestMain is also the process of a method: a measurement starts this program again.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == methodFlag {
		main()
		return
	}
	os.Exit(testenv.Main(m))
}

func TestParse(t *testing.T) {
	s, err := parse([]string{"-quick", "-layers", "scipy,debian", "-methods", "igzip"})
	if err != nil {
		t.Fatal(err)
	}
	if s.Rounds != 1 || benchkit.Names(s.layers, layerName) != "scipy,debian" || benchkit.Names(s.methods, methodName) != igzip {
		t.Errorf("settings are %+v", s)
	}
	for _, args := range []string{"-layers base", "-methods igzip,", "-n 0", "word"} {
		if _, err := parse(strings.Fields(args)); err == nil {
			t.Errorf("%s is accepted", args)
		}
	}
	if _, err := parse([]string{"-help"}); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-help gives %v", err)
	}
}

func TestShell(t *testing.T) {
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	if err := os.WriteFile(in, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := shell(t.Context(), `cat <"$IN" | cat >"$OUT"`, in, out); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(out); err != nil || string(b) != "text" {
		t.Errorf("output %q, error %v", b, err)
	}
	if err := shell(t.Context(), `echo why >&2; false | cat >"$OUT"`, in, out); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("a program that fails before the pipe gives %v", err)
	}
}

func TestReadReport(t *testing.T) {
	var r report
	if err := r.read(strings.NewReader(`{"wall": 3000, "cpu": 5}` + "\n" + `{"peak_kib": 7}`)); err != nil || r.Wall != 3000 || r.PeakKiB != 7 {
		t.Errorf("report is %+v, error %v", r, err)
	}
	for _, text := range []string{"", `{"wall": 3000, "cpu": 5}`, "panic: no"} {
		if err := new(report).read(strings.NewReader(text)); err == nil {
			t.Errorf("%q is a report", text)
		}
	}
}

// needMethods skips without what the methods need, and makes a cache with one small layer.
func needMethods(t *testing.T) map[string]input {
	t.Helper()
	testenv.Need(t, testenv.Root, lab.ToolProgram("mkfs.erofs"))
	for _, tool := range []string{"time", "igzip", "unpigz", "zstd", "openssl"} {
		testenv.Need(t, testenv.Tool(tool))
	}
	t.Setenv("PATH", lab.Program("")+":"+os.Getenv("PATH"))
	t.Setenv("EROFS_LAB_CACHE", t.TempDir())
	if err := os.MkdirAll(filepath.Dir(lab.Layer("small")), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(lab.Layer("small"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	content := strings.Repeat("text ", 1<<20)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "dir/", Mode: 0o750},
		{Typeflag: tar.TypeReg, Name: "dir/file", Mode: 0o640, Size: int64(len(content)), PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}},
		{Typeflag: tar.TypeLink, Name: "dir/hard", Linkname: "dir/file"},
		{Typeflag: tar.TypeSymlink, Name: "soft", Linkname: "dir/file", Mode: 0o777},
		{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte(content)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	inputs, err := prepare(t.Context(), layer{"small", "small"})
	if err != nil {
		t.Fatal(err)
	}
	return inputs
}

// TestMethods: each method does something, and says how long it took.
func TestMethods(t *testing.T) {
	inputs := needMethods(t)
	remarks := map[string]string{goErofs: "1 of 5 entries refused", checkpoints1: "checkpoints"}
	for _, w := range workOf(methods) {
		t.Run(w.name+"-"+w.form, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			j := job{input: inputs[w.form].path, digest: inputs[w.form].digest, output: t.TempDir()}
			r, err := w.start(ctx, j)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(r.Remark, remarks[w.name]) || (w.name == ours) != (r.Inodes > 0) {
				t.Errorf("report is %+v", r)
			}
			if written, err := os.ReadDir(j.output); w.writes && (err != nil || len(written) == 0) {
				t.Errorf("nothing is written (%v)", err)
			}
			j.input, j.output = j.input+".missing", t.TempDir()
			if _, err := w.start(ctx, j); err == nil || !strings.Contains(err.Error(), "missing") {
				t.Errorf("without an input the error is %v", err)
			}
		})
	}
}

// TestCancel: what an interrupted benchmark started ends at once, all of it. A process that lived on would keep its pipe open.
func TestCancel(t *testing.T) {
	testenv.Need(t, testenv.Tool("time"))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	m := method{name: "sleep", script: `sleep 60 | cat`}
	if _, err := m.start(ctx, job{}); err == nil || time.Since(begin) > 5*time.Second {
		t.Errorf("ends with error %v after %v", err, time.Since(begin))
	}
}
