package snapshotter

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/file"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/probe"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

func TestMain(m *testing.M) {
	if root := os.Getenv(childRoot); root != "" {
		childMain(root)
		return
	}
	os.Exit(testenv.Main(m))
}

// fileBacked is what layers with missing data are mounted as here.
var fileBacked = testenv.Feature{Name: "file-backed", Missing: func() error { return probe.HaveFileBacked(os.TempDir()) }}

// immediate has no grace: what is not referenced goes with the next collection.
func immediate(root string) Options {
	return Options{Root: root, Backend: file.New(file.Options{}), Grace: -1}
}

// newRoot returns a root directory that is unmounted and removed when the test ends.
func newRoot(t testing.TB) string {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.EROFS)
	root := filepath.Join(t.TempDir(), "root")
	t.Cleanup(func() { unmountBelow(t, root) })
	return root
}

// unmountBelow removes all mounts below dir: what a reboot does.
func unmountBelow(t testing.TB, dir string) {
	t.Helper()
	if _, err := os.Stat(dir); os.IsNotExist(err) {
		return
	}
	points, err := fsbackend.MountsBelow(dir)
	if err != nil {
		t.Error(err)
	}
	for i := len(points) - 1; i >= 0; i-- {
		if err := fsbackend.Unmount(points[i]); err != nil {
			t.Error(err)
		}
	}
}

// start opens a snapshotter that is closed when the test ends.
func start(t testing.TB, opts Options) *Snapshotter {
	t.Helper()
	if opts.Log == nil {
		opts.Log = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	}
	s, err := New(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

// run has Run go on until the test ends or the returned function is called.
func run(t testing.TB, s *Snapshotter) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mounted mounts what a snapshotter returned, and unmounts it when the test ends.
func mounted(t testing.TB, mounts []mount.Mount, err error) string {
	t.Helper()
	must(t, err)
	dir := t.TempDir()
	must(t, mount.All(mounts, dir))
	t.Cleanup(func() { must(t, mount.UnmountAll(dir, 0)) })
	return dir
}

// commit makes a committed snapshot whose files are written by write.
func commit(t testing.TB, s *Snapshotter, name, parent string, write func(dir string)) {
	t.Helper()
	must(t, commitErr(t.Context(), s, name, parent, t.TempDir(), write))
}

func commitErr(ctx context.Context, s *Snapshotter, name, parent, dir string, write func(dir string)) error {
	mounts, err := s.Prepare(ctx, name+"-active", parent)
	if err != nil {
		return err
	}
	if err := mount.All(mounts, dir); err != nil {
		return err
	}
	write(dir)
	if err := mount.UnmountAll(dir, 0); err != nil {
		return err
	}
	return s.Commit(ctx, name, name+"-active")
}

// file returns a function that writes one file.
func oneFile(t testing.TB, name, content string) func(string) {
	return func(dir string) {
		t.Helper()
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	}
}

func wantContent(t testing.TB, path, want string) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	if string(b) != want {
		t.Fatalf("%s contains %q, want %q", path, b, want)
	}
}

// instanceOf returns the instance that a committed snapshot consists of.
func instanceOf(t testing.TB, s *Snapshotter, key string) layerstore.Instance {
	t.Helper()
	rec := recordOf(t, s, key)
	inst, err := s.layers.Get(rec.Instance)
	must(t, err)
	return inst
}

func recordOf(t testing.TB, s *Snapshotter, key string) (rec record) {
	t.Helper()
	must(t, s.view(t.Context(), func(ctx context.Context, r *records) error {
		id, _, err := snapshotKind(ctx, key)
		if err != nil {
			return err
		}
		rec, err = r.get(id)
		return err
	}))
	return rec
}

// convertAll does what Run does with the directories of committed snapshots.
func convertAll(t testing.TB, s *Snapshotter) {
	t.Helper()
	for {
		id, ok, err := s.nextDirectory(t.Context(), nil)
		must(t, err)
		if !ok {
			return
		}
		must(t, s.convert(t.Context(), id))
	}
}

// checkConsistent checks what must hold whenever nothing is under way. With grace < 0 and after Cleanup it is exact.
func checkConsistent(ctx context.Context, s *Snapshotter) error {
	var bad []string
	complain := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	referenced := map[layerstore.ID]bool{}
	var kinds map[uint64]snapshots.Kind
	var numbers map[uint64]layerstore.ID
	err := s.view(ctx, func(ctx context.Context, r *records) (err error) {
		if kinds, err = snapshotKinds(ctx); err != nil {
			return err
		}
		all, err := r.all()
		if err != nil {
			return err
		}
		want := 0
		for id, rec := range all {
			if kinds[id] == 0 {
				complain("record of unknown snapshot %d", id)
			}
			if (kinds[id] == snapshots.KindCommitted) != (rec.Instance != "") {
				complain("snapshot %d is %s and has the record %+v", id, kinds[id], rec)
			}
			for inst, how := range rec.refs() {
				want++
				referenced[inst] = true
				if v := r.refs.Get(refKey(inst, id)); len(v) != 1 || v[0] != how {
					complain("snapshot %d: reference to %s is %q, want %q", id, inst, v, how)
				}
				if _, ok := r.mountNumber(inst); !ok {
					complain("instance %s of snapshot %d has no mount number", inst, id)
				}
			}
		}
		for id := range kinds {
			if _, ok := all[id]; !ok {
				complain("snapshot %d has no record", id)
			}
		}
		have := 0
		for range bucketItems(r.refs) {
			have++
		}
		if have != want {
			complain("%d references, want %d", have, want)
		}
		numbers = r.mountNumbers()
		return nil
	})
	if err != nil {
		return err
	}
	for id := range referenced {
		if _, err := s.layers.Get(id); err != nil {
			complain("%v", err)
		}
	}
	for _, inst := range s.layers.List() {
		if !referenced[inst.ID] {
			complain("instance %s (%s) has no reference", inst.ID, inst.Kind)
		}
	}
	for n, id := range numbers {
		if !referenced[id] {
			complain("mount number %d is of instance %s, which has no reference", n, id)
		}
	}
	checkDirectories(s, complain, kinds, numbers)
	if len(bad) > 0 {
		return fmt.Errorf("inconsistent:\n  %s", strings.Join(bad, "\n  "))
	}
	return nil
}

func checkDirectories(s *Snapshotter, complain func(string, ...any), kinds map[uint64]snapshots.Kind, numbers map[uint64]layerstore.ID) {
	known := map[string]bool{}
	for n := range numbers {
		known[filepath.Base(s.mountDir(n))] = true
	}
	for _, name := range list(filepath.Join(s.root, "m")) {
		if !known[name] {
			complain("m/%s belongs to no instance", name)
		}
	}
	for _, name := range list(filepath.Join(s.root, "layers")) {
		if _, err := layerstore.ParseID(name); err != nil {
			complain("layers/%s is left", name)
		}
	}
	for _, name := range list(filepath.Join(s.root, "snapshots")) {
		id, err := parseSnapshotID(name)
		if err != nil || (kinds[id] != snapshots.KindActive && kinds[id] != snapshots.KindView) {
			complain("snapshots/%s is left (%s)", name, kinds[id])
		}
	}
	for id, kind := range kinds {
		if kind != snapshots.KindActive {
			continue
		}
		for _, dir := range []string{s.upperDir(id), s.workDir(id)} {
			if _, err := os.Stat(dir); err != nil {
				complain("%v", err)
			}
		}
	}
}

func list(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return []string{err.Error()}
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}
