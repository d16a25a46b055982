package layerstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/indextest"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/zstdchunked"
)

// lazyRecord is what a record of a lazy instance may look like that was checked.
func lazyRecord(dgst digest.Digest) Instance {
	return Instance{
		ID: LazyID(dgst, nil), Kind: EROFS, Layer: dgst, DiffID: dgst, DiffBytes: 9, MetaBytes: 4096, DataBytes: 4096, Lazy: &Lazy{
			Partial: true, Images: []string{"registry.example/app:1"}, MediaType: "x", Size: 7, Annotations: map[string]string{"k": "v"}, DiffID: dgst,
			Format: "estargz", Index: dgst, Prefetch: 1, FinalBytes: 8192, Verified: time.Unix(1, 0).UTC(), Mismatch: "another one",
		},
	}
}

// values are nested ones of a record's JSON, by the names of the fields.
type values = map[string]any

// TestDamagedLazyRecords: a record that cannot be right is named with file and field when the store is opened, and its instance is put aside.
func TestDamagedLazyRecords(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	many := values{}
	for i := range 9 {
		many[fmt.Sprint(i)] = "v"
	}
	cases := map[string][]any{
		"layer":            {nil, "", "sha256:1", 7},
		"diffID":           {"sha256:../../x"},
		"diffBytes":        {-1},
		"metaBytes":        {-1, 1.5, "7", int64(1)<<56 + 1},
		"dataBytes":        {-4096},
		"diskBytes":        {-1},
		"inodes":           {-1},
		"lazy":             {nil, 7, []any{}},
		"lazy.images":      {nil, []any{}, []any{""}, []any{7}, []any{"a\nb"}, []any{strings.Repeat("x", 1025)}, strings.Split("123456789", "")},
		"lazy.mediaType":   {"a\x00", strings.Repeat("x", 256), 7},
		"lazy.size":        {nil, 0, -1, int64(1)<<56 + 1, "1"},
		"lazy.annotations": {nil, values{}, many, values{"k": strings.Repeat("x", 257)}, values{strings.Repeat("x", 257): "v"}, values{"k": "\n"}, values{"k": 7}},
		"lazy.diffID":      {nil, "", "sha256:", "md5:d41d8cd98f00b204e9800998ecf8427e"},
		"lazy.format":      {nil, "", "soci", long[:200]},
		"lazy.index":       {nil, "x"},
		"lazy.prefetch":    {-1, int64(1) << 40},
		"lazy.finalBytes":  {-1, int64(1) << 40},
		"lazy.verified":    {"yesterday", "2026-01-01T00:00:00Z"}, // whose diffID is missing
		"lazy.mismatch":    {long[:64<<10+1], 7},
		"lazy.partial":     {"yes"},
		"more than 131072": {long},
	}
	l := lazyLayer(t)
	for field, damages := range cases {
		for i, damage := range damages {
			t.Run(fmt.Sprint(field, " ", i), func(t *testing.T) {
				root := t.TempDir()
				s := open(t, root)
				inst := lazily(t, s, l)
				setField(t, recordPath(s, inst.ID), field, damage)
				wantPutAside(t, root, inst.ID, strings.TrimSuffix(field, ".verified"))
			})
		}
	}
}

// setField puts a value into a record, or takes the field away.
func setField(t *testing.T, path, field string, value any) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	var all values
	must(t, json.Unmarshal(b, &all))
	in := all
	outer, inner, nested := strings.Cut(field, ".")
	if nested {
		in, outer = all[outer].(values), inner
	}
	if value == nil {
		delete(in, outer)
	} else {
		in[outer] = value
	}
	b, err = json.Marshal(all)
	must(t, err)
	must(t, os.WriteFile(path, b, 0o600))
}

// wantPutAside expects that a store puts an instance aside and says what of its record is wrong.
func wantPutAside(t *testing.T, root string, id ID, field string) {
	t.Helper()
	var log bytes.Buffer
	s, err := Open(root, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	must(t, err)
	defer func() { must(t, s.Close()) }()
	if len(s.List()) > 0 {
		t.Error("the instance is there")
	}
	if _, err := os.Stat(filepath.Join(s.dir, brokenPrefix+string(id))); err != nil {
		t.Error(err)
	}
	if said := log.String(); !strings.Contains(said, "level=ERROR") || !strings.Contains(said, recordName+": ") || !strings.Contains(said, field) || len(said) > 1000 {
		t.Errorf("%q is not named in %s: %.2000s", field, recordName, said)
	}
	if _, err := ReadInstance(filepath.Join(s.dir, brokenPrefix+string(id))); field != "lazy" && err == nil {
		t.Error("read where there are no other files to compare it with")
	}
}

// TestUnreadableRecordsAreNotWritten: what a hostile image says is refused before there is an instance, or left out of what is kept.
func TestUnreadableRecordsAreNotWritten(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	l := lazyLayer(t)
	for field, change := range map[string]func(*Lazy){
		"lazy.annotations": func(z *Lazy) {
			z.Annotations = maps.Clone(z.Annotations)
			z.Annotations["io.containers.zstd-chunked.x"] = strings.Repeat("x", 1<<20)
		},
		"lazy.diffID":    func(z *Lazy) { z.DiffID = "sha256:1" },
		"lazy.mediaType": func(z *Lazy) { z.MediaType = strings.Repeat("x", 1<<20) },
		"lazy.images":    func(z *Lazy) { z.Images = nil },
		"lazy.size":      func(z *Lazy) { z.Size = -1 },
	} {
		_, _, err := s.ImportLazy(t.Context(), lazyID(l), l.Digest, func(ctx context.Context) (Indexed, error) {
			from, err := indexed(l)(ctx)
			change(&from.Lazy)
			return from, err
		})
		if err == nil || !strings.Contains(err.Error(), recordName+": "+field+": ") {
			t.Errorf("%s: %v", field, err)
		}
	}
	if left := names(t, s.dir); len(left) > 0 {
		t.Errorf("left %q", left)
	}
	id := lazily(t, s, l).ID
	must(t, errors.Join(s.AddImage(id, strings.Repeat("x", 1<<20)), s.SetMismatch(id, errors.New(strings.Repeat("ö", 1<<20)))))
	inst, err := open(t, root).Get(id)
	must(t, err)
	if n := len(inst.Lazy.Mismatch); len(inst.Lazy.Images) != 1 || n < maxMismatchBytes-8 || n > maxMismatchBytes || !utf8.ValidString(inst.Lazy.Mismatch) {
		t.Errorf("%d images, mismatch of %d bytes", len(inst.Lazy.Images), n)
	}
	if err := s.SetVerified(id, digest.FromString("another tar"), 1); err == nil {
		t.Error("an instance is verified as another tar than its image says")
	}
}

// TestIndexFormats: instances of all formats can be opened again.
func TestIndexFormats(t *testing.T) {
	layer, blob := indextest.PodmanLayer(t, indextest.Archive(), 4096)
	dgst := digest.FromBytes(blob)
	root := t.TempDir()
	s := open(t, root)
	_, pin, err := s.ImportLazy(t.Context(), LazyID(dgst, layer.Annotations), dgst, func(context.Context) (Indexed, error) {
		x, err := zstdchunked.Open(layer, bytes.NewReader(blob), index.Limits{})
		return Indexed{Index: x, Lazy: Lazy{Images: []string{"x"}, Size: layer.Size, Annotations: layer.Annotations, DiffID: dgst}}, err
	})
	must(t, err)
	pin.Release()
	if len(open(t, root).List()) != 1 {
		t.Error("it is not there")
	}
}
