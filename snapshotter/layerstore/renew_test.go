package layerstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
)

// presentIn returns which extents of a blob are present, after it has read them.
func presentIn(t *testing.T, dir string, id ID) (present []int) {
	t.Helper()
	b, err := blob.Open(dir, id.Bytes(), blob.Options{})
	must(t, err)
	defer b.Close()
	must(t, b.CheckTable())
	extents, err := b.Extents(0, b.Count())
	must(t, err)
	for i, x := range extents {
		data, err := io.ReadAll(io.NewSectionReader(b.File(), x.Offset, int64(x.Length)))
		must(t, err)
		right := sha256.Sum256(data) == x.Digest
		if b.Present(i) != b.Durable(i) || b.Present(i) && !right {
			t.Errorf("extent %d: present %v, durable %v, right %v", i, b.Present(i), b.Durable(i), right)
		}
		if b.Present(i) {
			present = append(present, i)
		}
		if !b.Present(i) && !bytes.Equal(data, make([]byte, len(data))) {
			t.Errorf("extent %d is not present, and not a hole", i)
		}
	}
	return present
}

// spoil changes a byte of an extent on the disk.
func spoil(t *testing.T, dir string, id ID, extent int) {
	t.Helper()
	b, err := blob.Open(dir, id.Bytes(), blob.Options{})
	must(t, err)
	x, err := b.Extents(extent, extent+1)
	must(t, err)
	var one [1]byte
	at := x[0].Offset + int64(x[0].Length)/2
	_, err = b.File().ReadAt(one[:], at)
	must(t, err)
	one[0]++
	_, err = b.File().WriteAt(one[:], at)
	must(t, errors.Join(err, b.Close()))
}

func even(i int) bool { return i%2 == 0 }

// TestRenew: the new files have what was recorded and is right, and nothing else; the old ones are an orphan.
func TestRenew(t *testing.T) {
	root := t.TempDir()
	s, left := leftStore(t, root)
	l := lazyLayer(t)
	inst := lazily(t, s, l)
	fillExtents(t, s.Dir(inst.ID), inst.ID, l, even)
	spoil(t, s.Dir(inst.ID), inst.ID, 4)
	spoil(t, s.Dir(inst.ID), inst.ID, 5) // which nobody has recorded
	old, err := os.Stat(s.DataPath(inst.ID))
	must(t, err)
	meta, err := os.ReadFile(s.MetaPath(inst.ID))
	must(t, err)

	orphan, err := s.Renew(t.Context(), inst.ID)
	must(t, err)
	if got, want := presentIn(t, s.Dir(inst.ID), inst.ID), []int{0, 2, 6, 8, 10, 12, 14}; !slices.Equal(got, want) {
		t.Errorf("present are %v, want %v", got, want)
	}
	if b, err := os.ReadFile(s.MetaPath(inst.ID)); err != nil || !bytes.Equal(b, meta) {
		t.Errorf("the meta image is another one: %v", err)
	}
	if orphans, err := s.Orphans(); err != nil || !slices.Equal(orphans, []string{orphan}) {
		t.Errorf("orphans %q, %v; want %q", orphans, err, orphan)
	}
	if fi, err := os.Stat(filepath.Join(orphan, dataName)); err != nil || !os.SameFile(fi, old) {
		t.Errorf("the orphan has other files: %v", err)
	}
	if len(*left) > 0 { // the instance has not left the store
		t.Errorf("told of %q", *left)
	}
	for when, s := range map[string]*Store{"now": s, "after a restart": open(t, root)} {
		if got, err := s.Get(inst.ID); err != nil || !reflect.DeepEqual(got, inst) {
			t.Errorf("%s: %+v, %v", when, got, err)
		}
	}
	must(t, s.DeleteDiscarded())
	if files := names(t, s.dir); !slices.Equal(files, []string{string(inst.ID)}) {
		t.Errorf("left are %q", files)
	}

	// Again: what the first time has kept.
	_, err = s.Renew(t.Context(), inst.ID)
	must(t, err)
	if got := presentIn(t, s.Dir(inst.ID), inst.ID); len(got) != 7 {
		t.Errorf("the second time has kept %v", got)
	}
}

// TestRenewWithoutRecord: what nobody has recorded is not there, however right it is.
func TestRenewWithoutRecord(t *testing.T) {
	s := open(t, t.TempDir())
	l := lazyLayer(t)
	inst := lazily(t, s, l)
	fillExtents(t, s.Dir(inst.ID), inst.ID, l, nil)
	must(t, os.Remove(filepath.Join(s.Dir(inst.ID), blob.PresentName)))
	_, err := s.Renew(t.Context(), inst.ID)
	must(t, err)
	if got := presentIn(t, s.Dir(inst.ID), inst.ID); len(got) > 0 {
		t.Errorf("present are %v", got)
	}
}

// TestRenewCrash: a crash may cost an instance, which is made again, but leaves none with files that were mounted, and none that lies.
func TestRenewCrash(t *testing.T) {
	s := open(t, t.TempDir())
	l := lazyLayer(t)
	inst := lazily(t, s, l)
	fillExtents(t, s.Dir(inst.ID), inst.ID, l, even)
	steps := crashes(t, s, func() {
		_, err := s.Renew(t.Context(), inst.ID)
		must(t, err)
	}, func(at string, crashed *Store) {
		orphans, err := crashed.Orphans()
		must(t, err)
		_, err = crashed.Get(inst.ID)
		if !errdefs.IsNotFound(err) || len(orphans) != 1 {
			t.Errorf("crash at %s: %v, orphans %q", at, err, orphans)
		}
		if was, err := ReadInstance(orphans[0]); err != nil || was.ID != inst.ID {
			t.Errorf("crash at %s: the orphan is %+v, %v", at, was, err)
		}
		lazily(t, crashed, l)
		if got := presentIn(t, crashed.Dir(inst.ID), inst.ID); len(got) > 0 {
			t.Errorf("crash at %s: made again with %v", at, got)
		}
	})
	if !slices.Equal(steps, []string{"layerstore/renew/orphaned"}) {
		t.Errorf("steps %q", steps)
	}
}

// TestRenewOfDamagedFiles: an instance without hope leaves the store, so that it can be made again; the daemon must start all the same.
func TestRenewOfDamagedFiles(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	l := lazyLayer(t)
	for name, damage := range map[string]func(dir string) error{
		"extents cut":  func(dir string) error { return os.Truncate(filepath.Join(dir, blob.ExtentsName), 100) },
		"extents gone": func(dir string) error { return os.Remove(filepath.Join(dir, blob.ExtentsName)) },
		"data cut":     func(dir string) error { return os.Truncate(filepath.Join(dir, dataName), 4096) },
		"meta gone":    func(dir string) error { return os.Remove(filepath.Join(dir, metaName)) },
	} {
		inst := lazily(t, s, l)
		must(t, damage(s.Dir(inst.ID)))
		orphan, err := s.Renew(t.Context(), inst.ID)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := os.Stat(filepath.Join(orphan, recordName)); err != nil {
			t.Errorf("%s: the orphan: %v", name, err)
		}
		if _, err := s.Get(inst.ID); !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", name, err)
		}
		wantEmpty(t, root)
	}
}

// TestRenewEnds: who gives up leaves all as it was.
func TestRenewEnds(t *testing.T) {
	s := open(t, t.TempDir())
	l := lazyLayer(t)
	inst := lazily(t, s, l)
	fillExtents(t, s.Dir(inst.ID), inst.ID, l, even)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Renew(ctx, inst.ID); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if got := presentIn(t, s.Dir(inst.ID), inst.ID); len(got) != 8 {
		t.Errorf("present are %v", got)
	}
	if orphans, err := s.Orphans(); err != nil || len(orphans) > 0 {
		t.Errorf("orphans %q, %v", orphans, err)
	}
	if _, err := s.Renew(t.Context(), randomID()); !errdefs.IsNotFound(err) {
		t.Errorf("of what is not there: %v", err)
	}
}
