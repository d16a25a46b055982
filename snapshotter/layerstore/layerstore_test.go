package layerstore

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
)

func open(t testing.TB, root string) *Store {
	t.Helper()
	s, err := Open(root, Options{})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// layer returns a layer with one file, and its digest.
func layer(t testing.TB, content string) ([]byte, digest.Digest) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(t, w.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg}))
	_, err := io.WriteString(w, content)
	must(t, err)
	must(t, w.Close())
	return b.Bytes(), digest.FromBytes(b.Bytes())
}

func opener(b []byte) Opener {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

func never(context.Context) (io.ReadCloser, error) {
	return nil, errors.New("opened a layer that is there")
}

// wantEmpty checks that nothing is left in layers/.
func wantEmpty(t testing.TB, root string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(root, "layers"))
	must(t, err)
	for _, e := range entries {
		t.Errorf("left: %s", e.Name())
	}
}

func TestAdoptReturnConvert(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	upper := filepath.Join(root, "upper")
	must(t, os.Mkdir(upper, 0o755))
	must(t, os.WriteFile(filepath.Join(upper, "file"), make([]byte, 10_000), 0o600))
	must(t, os.Link(filepath.Join(upper, "file"), filepath.Join(upper, "link")))

	inst, pin, err := s.AdoptDir(upper, "17")
	must(t, err)
	if inst.Kind != Directory || inst.Origin != "17" || inst.OpaqueRoot {
		t.Errorf("adopted %+v", inst)
	}
	if _, err := os.Stat(upper); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the upper directory is still there: %v", err)
	}
	u, err := s.Usage(t.Context(), inst.ID)
	must(t, err)
	if u.Inodes != 4 || u.Bytes < 10_000 || u.Bytes > 30_000 { // with two of the store
		t.Errorf("a directory and a file of 10000 bytes with two names take %+v", u)
	}
	pin.Release()
	if got, err := open(t, root).Get(inst.ID); err != nil || got != inst {
		t.Errorf("after a restart: %+v, %v; want %+v", got, err, inst)
	}

	image, imagePin, err := s.ConvertDir(t.Context(), inst.ID)
	must(t, err)
	if image.Kind != EROFS || image.ID == inst.ID || image.Origin != string(inst.ID) || image.DiskBytes == 0 {
		t.Errorf("converted to %+v", image)
	}
	imagePin.Release()
	must(t, s.Discard(image.ID))

	must(t, os.Mkdir(upper, 0o755))
	if err := s.ReturnDir(inst.ID, upper); err == nil {
		t.Error("an upper directory was replaced")
	}
	must(t, os.Remove(upper))
	must(t, s.ReturnDir(inst.ID, upper))
	if fi, err := os.Stat(filepath.Join(upper, "file")); err != nil || fi.Size() != 10_000 {
		t.Errorf("the returned directory: %v", err)
	}
	must(t, s.DeleteDiscarded())
	wantEmpty(t, root)
	if err := s.ReturnDir(inst.ID, upper+"2"); !errdefs.IsNotFound(err) {
		t.Errorf("returned twice: %v", err)
	}
}

func TestFailedConversionLeavesNothing(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	upper := filepath.Join(root, "upper")
	must(t, os.Mkdir(upper, 0o755))
	inst, pin, err := s.AdoptDir(upper, "17")
	must(t, err)
	defer pin.Release()
	s.fromDir = func(_ context.Context, _ string, target converter.Target, _ converter.Limits) (converter.Result, error) {
		_, err := target.Data.WriteAt([]byte("half"), 0)
		return converter.Result{}, errors.Join(err, errors.New("disk full"))
	}
	if _, _, err := s.ConvertDir(t.Context(), inst.ID); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("converted: %v", err)
	}
	entries, err := os.ReadDir(s.dir)
	must(t, err)
	if len(entries) != 1 || entries[0].Name() != string(inst.ID) {
		t.Errorf("left: %v", entries)
	}
}

// TestOpenRepairs makes what a crash or a bad disk may leave.
func TestOpenRepairs(t *testing.T) {
	b, dgst := layer(t, "content")
	id := EagerID(dgst)
	for name, tc := range map[string]struct {
		damage func(t *testing.T, s *Store)
		there  bool // the instance is handed out afterwards
		broken bool // it was put aside
	}{
		"nothing":        {func(*testing.T, *Store) {}, true, false},
		"data cut":       {func(t *testing.T, s *Store) { must(t, os.Truncate(s.DataPath(id), 100)) }, false, true},
		"data longer":    {func(t *testing.T, s *Store) { must(t, os.Truncate(s.DataPath(id), 1<<20)) }, false, true},
		"meta missing":   {func(t *testing.T, s *Store) { must(t, os.Remove(s.MetaPath(id))) }, false, true},
		"no record":      {func(t *testing.T, s *Store) { must(t, os.Remove(recordPath(s, id))) }, false, true},
		"cut record":     {func(t *testing.T, s *Store) { must(t, os.Truncate(recordPath(s, id), 20)) }, false, true},
		"empty record":   {func(t *testing.T, s *Store) { must(t, os.Truncate(recordPath(s, id), 0)) }, false, false}, // not synced
		"foreign record": {func(t *testing.T, s *Store) { rewriteRecord(t, s, id, "\"id\": \"", "\"id\": \"0") }, false, true},
		"adoption cut": {func(t *testing.T, s *Store) {
			must(t, os.RemoveAll(s.path(id)))
			must(t, os.Mkdir(s.path(id), 0o700))
			must(t, os.Symlink("17", filepath.Join(s.path(id), originName)))
		}, false, false},
		"adoption cut early": {func(t *testing.T, s *Store) {
			must(t, os.RemoveAll(s.path(id)))
			must(t, os.Mkdir(s.path(id), 0o700))
		}, false, false},
		"directory without origin": {func(t *testing.T, s *Store) {
			must(t, os.RemoveAll(s.path(id)))
			must(t, os.MkdirAll(s.DirPath(id), 0o700))
		}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, root)
			_, pin, err := s.Import(t.Context(), dgst, opener(b))
			must(t, err)
			pin.Release()
			tc.damage(t, s)
			for _, left := range []string{"layers/" + buildingPrefix + "x", "removing/y"} {
				must(t, os.MkdirAll(filepath.Join(root, left, "deep"), 0o700))
			}

			s = open(t, root)
			if _, err := s.Get(id); (err == nil) != tc.there {
				t.Errorf("the instance: %v", err)
			}
			must(t, s.DeleteDiscarded())
			if left, err := os.ReadDir(s.removing); err != nil || len(left) > 0 {
				t.Errorf("left to be deleted: %v, %v", left, err)
			}
			entries, err := os.ReadDir(s.dir)
			must(t, err)
			broken := false
			for _, e := range entries {
				switch e.Name() {
				case brokenPrefix + string(id):
					broken = true
				case string(id):
				default:
					t.Errorf("left: %s", e.Name())
				}
			}
			if broken != tc.broken {
				t.Errorf("put aside: %v", broken)
			}
			// The layer can be had again.
			inst, pin, err := s.Import(t.Context(), dgst, opener(b))
			must(t, err)
			pin.Release()
			if _, err := s.check(inst.ID); err != nil {
				t.Error(err)
			}
		})
	}
}

func recordPath(s *Store, id ID) string { return filepath.Join(s.path(id), recordName) }

func rewriteRecord(t *testing.T, s *Store, id ID, old, new string) {
	b, err := os.ReadFile(recordPath(s, id))
	must(t, err)
	if !bytes.Contains(b, []byte(old)) {
		t.Fatalf("%s does not contain %s", b, old)
	}
	must(t, os.WriteFile(recordPath(s, id), bytes.Replace(b, []byte(old), []byte(new), 1), 0o600))
}

func TestOpenRefusesNewerFormats(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	b, dgst := layer(t, "content")
	inst, pin, err := s.Import(t.Context(), dgst, opener(b))
	must(t, err)
	pin.Release()
	must(t, os.Mkdir(filepath.Join(s.dir, buildingPrefix+"x"), 0o700))
	rewriteRecord(t, s, inst.ID, `"version": 1`, `"version": 2`)
	if _, err := Open(root, Options{}); err == nil || !strings.Contains(err.Error(), "version 2") || !strings.Contains(err.Error(), string(inst.ID)) {
		t.Errorf("opened a store of another version: %v", err)
	}
	if _, err := os.Stat(filepath.Join(s.dir, buildingPrefix+"x")); err != nil {
		t.Errorf("something was changed: %v", err)
	}
}

func TestIDs(t *testing.T) {
	_, a := layer(t, "a")
	_, b := layer(t, "b")
	if again := digest.Digest(string(a)); EagerID(a) == EagerID(b) || EagerID(a) != EagerID(again) {
		t.Error("ids do not follow from the layer")
	}
	// The id names directories and UUIDs that exist: it may change with converter.LayoutVersion only.
	const pinned = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	if got, want := EagerID(pinned), ID("d3cd02df1b47c318312bfda2ceb2bbe86e7b45d22f3da477aeec771200e9098d"); converter.LayoutVersion == 1 && got != want {
		t.Errorf("id of %s is %s, want %s", pinned, got, want)
	}
	for _, id := range []ID{EagerID(a), randomID()} {
		if p, err := ParseID(string(id)); err != nil || p != id || fmt.Sprintf("%x", id.Bytes()) != string(id) {
			t.Errorf("id %s: %v, %x", id, err, id.Bytes())
		}
	}
	for _, s := range []string{"", "abc", strings.Repeat("A", 64), strings.Repeat("g", 64), strings.Repeat("a", 65), "../" + strings.Repeat("a", 61)} {
		if _, err := ParseID(s); err == nil {
			t.Errorf("%q is taken for an id", s)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	_, dgst := layer(f, "content")
	for _, inst := range []Instance{
		{ID: EagerID(dgst), Kind: EROFS, Layer: dgst, DiffID: dgst, MetaBytes: 4096, DataBytes: 4096},
		{ID: randomID(), Kind: EROFS, Origin: "17", OpaqueRoot: true},
		lazyRecord(dgst),
	} {
		b, err := encodeRecord(inst)
		must(f, errors.Join(err, inst.validate()))
		f.Add(b)
	}
	f.Add([]byte(`{"version": 2, "id": 7}`))
	f.Add([]byte(`{"version": 1, "id": "", "metaBytes": -1}`))
	f.Add([]byte(`{"version": 1, "lazy": {"images": null, "annotations": {}, "diffID": "sha256:1"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		inst, err := parseRecord(b)
		if err != nil {
			return
		}
		inst.Created = time.Time{} // has several forms
		if inst.Lazy != nil {
			inst.Lazy.Verified = time.Time{}
			_ = inst.Lazy.Images[0] // must not panic
		}
		again, err := encodeRecord(inst)
		must(t, err)
		if back, err := parseRecord(again); err != nil || !reflect.DeepEqual(back, inst) {
			t.Errorf("%+v became %+v, %v", inst, back, err)
		}
		inst.ID.Bytes() // must not panic
	})
}
