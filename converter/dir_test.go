package converter

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// upperDirectory is a small tree that needs no privileges: the marks of overlayfs are in integration/fidelity_edge_test.go.
func upperDirectory(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "d"), 0o755),
		os.WriteFile(filepath.Join(dir, "d", "file"), []byte("contents"), 0o600),
		os.Link(filepath.Join(dir, "d", "file"), filepath.Join(dir, "a")),
		os.Symlink("d/file", filepath.Join(dir, "link")),
		os.WriteFile(filepath.Join(dir, ".wh.kept"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFromDir(t *testing.T) {
	b := newDirBuild(t.Context(), Target{Meta: &memFile{}, Data: &memFile{}}, Limits{})
	dir := upperDirectory(t)
	if err := b.root(dir); err != nil {
		t.Fatal(err)
	}
	want := []string{".wh.kept #1", "a #2", "d/", "d/file #2", "link #3"}
	if got := list(t, b.tree); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	r, err := FromDir(t.Context(), dir, Target{Meta: &memFile{}, Data: &memFile{}}, Limits{})
	if err != nil || r.Inodes != 5 || r.DiffID != "" {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestFromDirErrors(t *testing.T) {
	dir := upperDirectory(t)
	for name, l := range map[string]Limits{
		"entries": {Inodes: 4}, "one file": {FileBytes: 7}, "names": {MetadataBytes: 15},
	} {
		_, err := FromDir(t.Context(), dir, Target{Meta: &memFile{}, Data: &memFile{}}, l)
		var e *EntryError
		if !errors.Is(err, ErrLimit) || !errors.As(err, &e) || e.Offset != -1 {
			t.Errorf("%s: error %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := FromDir(ctx, dir, Target{Meta: &memFile{}, Data: &memFile{}}, Limits{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: error %v", err)
	}
	if _, err := FromDir(t.Context(), filepath.Join(dir, "a"), Target{Meta: &memFile{}, Data: &memFile{}}, Limits{}); err == nil {
		t.Error("a file was converted as if it were a directory")
	}
}
