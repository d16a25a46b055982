package guest

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/file"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/probe"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/treediff"
)

// plan returns what is to be tested and where it is.
func plan(t *testing.T) (Plan, string) {
	t.Helper()
	dir := os.Getenv(DirVariable)
	if dir == "" {
		t.Skip(DirVariable + " is not set; `make vm` runs this test in virtual machines")
	}
	p, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return p, dir
}

// TestProbe expects the answers that are known of this kernel: a probe that fails for another reason would go unnoticed elsewhere.
func TestProbe(t *testing.T) {
	list, set := os.LookupEnv(AnswersVariable)
	if !set {
		t.Skip(AnswersVariable + " is not set")
	}
	yes := strings.Split(list, ",")
	dir := t.TempDir()
	for name, answer := range map[string]error{
		"erofs":            probe.HaveEROFS(),
		"file-backed":      probe.HaveFileBacked(dir),
		"loop":             probe.HaveLoop(dir),
		"overlay":          probe.HaveOverlay(dir),
		"overlay-index":    probe.HaveOverlay(dir, "index=off"),
		"overlay-redirect": probe.HaveOverlay(dir, "redirect_dir=nofollow"),
		"overlay-metacopy": probe.HaveOverlay(dir, "metacopy=off"),
		"pre-content":      probe.HavePreContent(dir),
		"fscache":          probe.HaveFscache(),
	} {
		switch {
		case slices.Contains(yes, name) && answer != nil:
			t.Errorf("%s: want yes, got %v", name, answer)
		case !slices.Contains(yes, name) && !errors.Is(answer, fsbackend.ErrNotSupported):
			t.Errorf("%s: want no, got %v", name, answer)
		default:
			t.Logf("%s: %v", name, answer)
		}
	}
}

func TestImages(t *testing.T) {
	p, dir := plan(t)
	for name, mode := range map[string]struct {
		mode file.Mode
		have error
	}{
		"file": {file.File, probe.HaveFileBacked(t.TempDir())},
		"loop": {file.Loop, probe.HaveLoop(t.TempDir())},
	} {
		for _, img := range p.Images {
			t.Run(name+"/"+img.Name, func(t *testing.T) {
				if errors.Is(mode.have, fsbackend.ErrNotSupported) {
					t.Skip(mode.have)
				}
				if err := WithImage(t.Context(), mode.mode, Files(dir, img.Name), func(root string) error {
					img.compare(t, root)
					return nil
				}); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func (i Image) compare(t *testing.T, root string) {
	t.Helper()
	if i.Tree != nil {
		same(t, i.Tree, scan(t, root))
	}
	for _, s := range i.Spots {
		if got, err := s.Read(root); err != nil || !bytes.Equal(got, s.Data) {
			t.Errorf("%q at %d: %d bytes, not the %d expected ones (%v)", s.Path, s.Offset, len(got), len(s.Data), err)
		}
	}
}

func TestStacks(t *testing.T) {
	p, dir := plan(t)
	for _, s := range p.Stacks {
		t.Run(s.Name, func(t *testing.T) {
			if err := WithStack(t.Context(), dir, s.Layers, func(root string) error {
				same(t, s.Merged, scan(t, root))
				if log := Change(root); !slices.Equal(log, s.Log) {
					t.Errorf("changes: want %q, got %q", s.Log, log)
				}
				same(t, s.Changed, scan(t, root), treediff.FieldMtime)
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestExec runs a program from an image: its pages come through mmap.
func TestExec(t *testing.T) {
	p, dir := plan(t)
	const name, program = "busybox", "bin/busybox"
	if !slices.ContainsFunc(p.Images, func(i Image) bool { return i.Name == name }) {
		t.Skip("no image " + name)
	}
	if err := WithImage(t.Context(), file.Auto, Files(dir, name), func(root string) error {
		out, err := exec.CommandContext(t.Context(), filepath.Join(root, program), "echo", "it runs").CombinedOutput()
		if string(out) != "it runs\n" {
			t.Errorf("got %q", out)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

func scan(t *testing.T, root string) []treediff.Record {
	t.Helper()
	records, err := treediff.Scan(t.Context(), root)
	if err != nil {
		t.Error(err)
	}
	return records
}

func same(t *testing.T, want, got []treediff.Record, ignore ...treediff.Field) {
	t.Helper()
	const most = 40
	differences := treediff.Compare(want, got, ignore...)
	for _, d := range differences[:min(most, len(differences))] {
		t.Error(d)
	}
	if len(differences) > most {
		t.Errorf("and %d more differences", len(differences)-most)
	}
}
