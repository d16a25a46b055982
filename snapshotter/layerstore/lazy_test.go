package layerstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	stargz "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/estargz"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/stargzlayer"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
)

// lazyLayer is a layer of two small files and a large one of many extents.
func lazyLayer(t testing.TB) stargzlayer.Layer {
	t.Helper()
	return stargzlayer.Pack(t, tartest.Pack([]tartest.File{
		{Name: "one", Type: '0', Mode: 0o644, Data: tartest.Pattern(10, 1)},
		{Name: "two", Type: '0', Mode: 0o644, Data: tartest.Pattern(5000, 2)},
		{Name: "large", Type: '0', Mode: 0o644, Data: tartest.Pattern(200_000, 3)},
	}), stargz.WithChunkSize(16384))
}

func lazyID(l stargzlayer.Layer) ID { return LazyID(l.Digest, l.Annotations) }

// indexed opens the index of a layer.
func indexed(l stargzlayer.Layer) func(context.Context) (Indexed, error) {
	return func(context.Context) (Indexed, error) {
		idx, err := estargz.Open(index.Layer{Annotations: l.Annotations, Size: l.Size}, bytes.NewReader(l.Blob), index.Limits{})
		return Indexed{Index: idx, Lazy: Lazy{
			Images: []string{"registry.example/app:1"}, MediaType: l.MediaType, Size: l.Size, Annotations: l.Annotations, DiffID: l.DiffID,
		}}, err
	}
}

// importLazy makes the instance of a layer, which stays pinned.
func importLazy(t testing.TB, s *Store, l stargzlayer.Layer) (Instance, Pin) {
	t.Helper()
	inst, pin, err := s.ImportLazy(t.Context(), lazyID(l), l.Digest, indexed(l))
	must(t, err)
	return inst, pin
}

// lazily makes the instance of a layer.
func lazily(t testing.TB, s *Store, l stargzlayer.Layer) Instance {
	t.Helper()
	inst, pin := importLazy(t, s, l)
	pin.Release()
	return inst
}

// fillExtents writes the extents of a lazy instance that choose says, all if it is nil, and returns how many.
func fillExtents(t testing.TB, dir string, id ID, l stargzlayer.Layer, choose func(i int) bool) (count int) {
	t.Helper()
	b, err := blob.Open(dir, id.Bytes(), blob.Options{})
	must(t, err)
	from, err := indexed(l)(t.Context())
	must(t, err)
	_, err = converter.CheckTar(t.Context(), bytes.NewReader(l.Blob), from.Index, converter.Limits{}, func(i int, data []byte) error {
		if choose != nil && !choose(i) {
			return nil
		}
		count++
		return b.Write(i, data)
	})
	must(t, errors.Join(err, b.Close()))
	return count
}

func TestImportLazy(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	l := lazyLayer(t)
	inst, pin := importLazy(t, s, l)
	if !inst.Partial() || inst.Kind != EROFS || inst.ID != lazyID(l) || inst.Layer != l.Digest || inst.DiffID != "" || inst.Lazy.DiffID != l.DiffID {
		t.Errorf("made %+v, %+v", inst, inst.Lazy)
	}
	if err := s.Discard(inst.ID); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("discarding a pinned instance: %v", err)
	}
	b, err := blob.Open(s.Dir(inst.ID), inst.ID.Bytes(), blob.Options{})
	must(t, err)
	if p := b.Progress(); p.PresentExtents != 0 || p.Bytes != 205_010 || p.Extents != 15 {
		t.Errorf("%+v", p)
	}
	must(t, errors.Join(b.CheckTable(), b.Close()))
	again, secondPin, err := s.ImportLazy(t.Context(), inst.ID, l.Digest, func(context.Context) (Indexed, error) {
		return Indexed{}, errors.New("opened an index of what is there")
	})
	must(t, err)
	if !reflect.DeepEqual(again, inst) {
		t.Errorf("the second import gave %+v, the first %+v", again, inst)
	}
	secondPin.Release()
	pin.Release()

	got, err := open(t, root).Get(inst.ID)
	must(t, err)
	if !reflect.DeepEqual(got, inst) {
		t.Errorf("after a restart %+v, %+v; want %+v, %+v", got, got.Lazy, inst, inst.Lazy)
	}
	if files := names(t, s.Dir(inst.ID)); !slices.Equal(files, []string{"data", "extents", "layer.json", "meta.erofs", "present"}) {
		t.Errorf("files %q", files)
	}
	if len(s.Working()) > 0 || s.Stats() != (Stats{}) { // nothing was converted
		t.Errorf("%+v", s.Stats())
	}
}

func names(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestImportLazyWithoutData: an instance of which nothing is missing is complete from the start.
func TestImportLazyWithoutData(t *testing.T) {
	s := open(t, t.TempDir())
	inst := lazily(t, s, stargzlayer.Pack(t, tartest.Pack([]tartest.File{{Name: "dir/", Type: '5'}, {Name: "empty", Type: '0'}})))
	if inst.Partial() || inst.Lazy == nil {
		t.Errorf("%+v, %+v", inst, inst.Lazy)
	}
}

// TestLazyUsage: an instance is charged for what it will take, and then for what it takes.
func TestLazyUsage(t *testing.T) {
	s := open(t, t.TempDir())
	l := lazyLayer(t)
	inst := lazily(t, s, l)
	before, err := s.Usage(t.Context(), inst.ID)
	must(t, err)
	if want := (Usage{inst.Lazy.FinalBytes, 6}); before != want || inst.Lazy.FinalBytes != inst.MetaBytes+(1+2+49)*4096 {
		t.Errorf("charged %+v, want %+v; final are %d bytes, of them %d of metadata", before, want, inst.Lazy.FinalBytes, inst.MetaBytes)
	}
	fillExtents(t, s.Dir(inst.ID), inst.ID, l, nil)
	must(t, s.SetComplete(inst))
	after, err := s.Usage(t.Context(), inst.ID)
	must(t, err)
	real, err := DirUsage(t.Context(), s.Dir(inst.ID))
	must(t, err)
	// The directory and the small files take a few blocks.
	if after != real || after.Inodes != before.Inodes || after.Bytes < before.Bytes || after.Bytes > before.Bytes+8*4096 {
		t.Errorf("charged %+v, takes %+v, was charged %+v before", after, real, before)
	}
}

// TestImportLazyFails: what cannot be made leaves nothing, and can be had later.
func TestImportLazyFails(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	l := lazyLayer(t)
	broken := func(context.Context) (Indexed, error) {
		from, err := indexed(l)(t.Context())
		records := from.Index.Records
		from.Index.Records = func() (index.Reader, error) {
			r, err := records()
			return &endingReader{r, 2}, err
		}
		return from, err
	}
	for name, c := range map[string]struct {
		layer digest.Digest
		open  func(context.Context) (Indexed, error)
	}{
		"no index":     {l.Digest, func(context.Context) (Indexed, error) { return Indexed{}, errTest }},
		"broken index": {l.Digest, broken},
		"no digest":    {"sha256:123", indexed(l)},
		"other hash":   {digest.Digest("sha512:" + strings.Repeat("0", 128)), indexed(l)},
	} {
		if _, _, err := s.ImportLazy(t.Context(), lazyID(l), c.layer, c.open); err == nil || !strings.Contains(err.Error(), c.layer.String()) {
			t.Errorf("%s: got %v", name, err)
		}
		wantEmpty(t, root)
	}
	lazily(t, s, l)
}

var errTest = errors.New("made by a test")

// endingReader breaks after some records.
type endingReader struct {
	index.Reader
	left int
}

func (r *endingReader) Next() (*index.Record, error) {
	if r.left--; r.left < 0 {
		return nil, errTest
	}
	return r.Reader.Next()
}

// TestImportLazyOnce: all who want an instance at a time get one; if the first cannot open the index, another may.
func TestImportLazyOnce(t *testing.T) {
	s := open(t, t.TempDir())
	l := lazyLayer(t)
	opening, release := make(chan struct{}), make(chan struct{})
	var opened atomic.Int64
	const callers = 5
	results := make(chan error, callers)
	var busy sync.WaitGroup
	ask := func(open func(context.Context) (Indexed, error)) {
		busy.Go(func() {
			_, pin, err := s.ImportLazy(t.Context(), lazyID(l), l.Digest, func(ctx context.Context) (Indexed, error) {
				opened.Add(1)
				return open(ctx)
			})
			pin.Release()
			results <- err
		})
	}
	ask(func(context.Context) (Indexed, error) {
		close(opening)
		<-release
		return Indexed{}, errTest
	})
	<-opening
	for range callers - 1 {
		ask(indexed(l))
	}
	for waiters(s, lazyID(l)) < callers {
		runtime.Gosched()
	}
	close(release)
	busy.Wait()
	var failed int
	for range callers {
		if err := <-results; errors.Is(err, errTest) {
			failed++
		} else if err != nil {
			t.Error(err)
		}
	}
	if failed != 1 || opened.Load() != 2 || s.Pinned(lazyID(l)) {
		t.Errorf("%d failed, the index was opened %d times, still pinned: %v", failed, opened.Load(), s.Pinned(lazyID(l)))
	}
}

// TestImportLazyEndsWithItsLastWaiter: nothing is made for who has gone.
func TestImportLazyEndsWithItsLastWaiter(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	l := lazyLayer(t)
	ctx, leave := context.WithCancel(t.Context())
	_, _, err := s.ImportLazy(ctx, lazyID(l), l.Digest, func(building context.Context) (Indexed, error) {
		leave()
		<-building.Done()
		return Indexed{}, building.Err()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	must(t, s.Close())
	wantEmpty(t, root)
}

// crashes runs do, and opens a copy of the store as it was on disk at every named step.
func crashes(t *testing.T, s *Store, do func(), check func(at string, crashed *Store)) (steps []string) {
	t.Helper()
	copies := map[string]string{}
	step.Hook = func(name string) {
		to := filepath.Join(t.TempDir(), "root")
		if err := os.CopyFS(to, os.DirFS(filepath.Dir(s.dir))); err != nil {
			t.Error(err)
		}
		steps = append(steps, name)
		copies[name] = to
	}
	do()
	step.Hook = nil
	for _, name := range steps {
		crashed := open(t, copies[name])
		check(name, crashed)
		must(t, crashed.DeleteDiscarded())
		for _, left := range append(names(t, crashed.removing), names(t, crashed.dir)...) {
			if _, err := ParseID(left); err != nil {
				t.Errorf("crash at %s: %s is left", name, left)
			}
		}
	}
	return steps
}

// TestImportLazyCrash: an instance is there as a whole, or not at all, and can be made then.
func TestImportLazyCrash(t *testing.T) {
	s := open(t, t.TempDir())
	l := lazyLayer(t)
	steps := crashes(t, s, func() { lazily(t, s, l) }, func(at string, crashed *Store) {
		_, err := crashed.Get(lazyID(l))
		if want := at == "layerstore/build/renamed"; (err == nil) != want {
			t.Errorf("crash at %s: %v", at, err)
		}
		inst := lazily(t, crashed, l)
		b, err := blob.Open(crashed.Dir(inst.ID), inst.ID.Bytes(), blob.Options{})
		must(t, err)
		must(t, errors.Join(b.CheckTable(), b.Close()))
	})
	if !slices.Equal(steps, []string{"layerstore/build/written", "layerstore/build/renamed"}) {
		t.Errorf("steps %q", steps)
	}
}

// leftStore is a store that tells what leaves it.
func leftStore(t *testing.T, root string) (*Store, *[]string) {
	t.Helper()
	left := &[]string{}
	s, err := Open(root, Options{Left: func(inst Instance, dir string) {
		*left = append(*left, fmt.Sprint(inst.ID, " ", inst.Partial(), " ", filepath.Base(filepath.Dir(dir))))
		if _, err := os.Stat(filepath.Join(dir, metaName)); err != nil {
			t.Error(err)
		}
	}})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s, left
}

// TestDiscardLazy: an instance whose data are missing becomes an orphan, whose files stay; one that is complete goes as others do.
func TestDiscardLazy(t *testing.T) {
	root := t.TempDir()
	s, left := leftStore(t, root)
	l := lazyLayer(t)
	inst := lazily(t, s, l)
	must(t, s.Discard(inst.ID))
	must(t, s.Discard(inst.ID)) // not there: no error, and nobody is told
	if want := []string{string(inst.ID) + " true orphans"}; !slices.Equal(*left, want) {
		t.Errorf("told of %q, want %q", *left, want)
	}
	must(t, s.DeleteDiscarded())
	orphans, err := s.Orphans()
	must(t, err)
	if len(orphans) != 1 {
		t.Fatalf("orphans %q", orphans)
	}

	again := lazily(t, s, l) // in files of its own
	fillExtents(t, orphans[0], inst.ID, l, nil)
	was, err := ReadInstance(orphans[0])
	if err != nil || was.ID != inst.ID || !was.Partial() {
		t.Errorf("the orphan: %+v, %v", was, err)
	}
	b, err := blob.Open(s.Dir(again.ID), again.ID.Bytes(), blob.Options{})
	must(t, err)
	if p := b.Progress(); p.PresentExtents > 0 {
		t.Errorf("the new instance: %+v", p)
	}
	must(t, b.Close())
	must(t, s.SetComplete(again))
	must(t, s.Discard(again.ID))
	if want := string(inst.ID) + " false removing"; len(*left) != 2 || (*left)[1] != want {
		t.Errorf("told of %q, want %q as well", *left, want)
	}
	must(t, s.Close())

	s = open(t, root)
	if after, err := s.Orphans(); err != nil || !slices.Equal(after, orphans) {
		t.Errorf("after a restart the orphans are %q, %v", after, err)
	}
	must(t, s.DiscardDir(orphans[0]))
	must(t, s.DeleteDiscarded())
	if after, err := s.Orphans(); err != nil || len(after) > 0 || len(names(t, s.removing)) > 0 {
		t.Errorf("left are %q, %v", after, err)
	}
	wantEmpty(t, root)
}

// TestDiscardWhole: nobody is told of what is not lazy.
func TestDiscardWhole(t *testing.T) {
	s, left := leftStore(t, t.TempDir())
	b, dgst := layer(t, "content")
	inst, pin, err := s.Import(t.Context(), dgst, opener(b))
	must(t, err)
	pin.Release()
	must(t, s.Discard(inst.ID))
	if len(*left) > 0 {
		t.Errorf("told of %q", *left)
	}
}

// TestOpenDamagedLazy: what cannot be used is put aside, and the layer can be had again.
func TestOpenDamagedLazy(t *testing.T) {
	l := lazyLayer(t)
	id := lazyID(l)
	for name, damage := range map[string]func(s *Store) error{
		"data cut":     func(s *Store) error { return os.Truncate(s.DataPath(id), 100) },
		"meta missing": func(s *Store) error { return os.Remove(s.MetaPath(id)) },
		"record cut":   func(s *Store) error { return os.Truncate(recordPath(s, id), 50) },
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, root)
			lazily(t, s, l)
			must(t, damage(s))
			s = open(t, root)
			if _, err := s.Get(id); err == nil {
				t.Error("it is still there")
			}
			lazily(t, s, l)
		})
	}
}

// TestLazyID: the id follows from the layer and from what names its index.
func TestLazyID(t *testing.T) {
	const layer = digest.Digest("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
	all := map[ID]string{EagerID(layer): "eager"}
	for _, annotations := range []map[string]string{
		nil, {"a": "b"}, {"a": "c"}, {"b": "a"}, {"ab": ""}, {"a": "b", "c": "d"}, {"a": "bc", "d": ""}, {"a": "b\x001:c\x001:d\x00"}, {"a": "b", "c\x001:d": ""},
	} {
		id := LazyID(layer, annotations)
		if other, ok := all[id]; ok {
			t.Errorf("%q has the id of %s", annotations, other)
		}
		all[id] = fmt.Sprintf("%q", annotations)
		if _, err := ParseID(string(id)); err != nil {
			t.Error(err)
		}
	}
	if LazyID(layer, nil) != LazyID(layer, map[string]string{}) || LazyID(layer, nil) == LazyID(digest.FromString("other"), nil) {
		t.Error("the id does not follow from the layer")
	}
	// The id names directories and UUIDs that exist: it may change with converter.LazyLayoutVersion only.
	const pinned = ID("ad3a79c62b50d4ef98f58d71ca97f1b81f0ec46aa5dc643d7ec85f25a3011dc8")
	if got := LazyID(layer, map[string]string{"k": "v"}); converter.LazyLayoutVersion == 2 && got != pinned {
		t.Errorf("id is %s, want %s", got, pinned)
	}
}

// TestLazyIsVerifiable: the extents on disk have the digests that the index says, so that Renew can tell.
func TestLazyIsVerifiable(t *testing.T) {
	s := open(t, t.TempDir())
	l := lazyLayer(t)
	inst := lazily(t, s, l)
	fillExtents(t, s.Dir(inst.ID), inst.ID, l, nil)
	b, err := blob.Open(s.Dir(inst.ID), inst.ID.Bytes(), blob.Options{})
	must(t, err)
	defer b.Close()
	extents, err := b.Extents(0, b.Count())
	must(t, err)
	for i, x := range extents {
		data, err := io.ReadAll(io.NewSectionReader(b.File(), x.Offset, int64(x.Length)))
		must(t, err)
		if sha256.Sum256(data) != x.Digest || !b.Present(i) || !b.Durable(i) {
			t.Errorf("extent %d: present %v, durable %v, %d bytes with digest %x", i, b.Present(i), b.Durable(i), len(data), sha256.Sum256(data))
		}
	}
}

// TestDecoder: what the table says of an extent is enough to decode it from the layer's blob.
func TestDecoder(t *testing.T) {
	s := open(t, t.TempDir())
	l := stargzlayer.Pack(t, tartest.Pack([]tartest.File{
		{Name: "a", Type: '0', Mode: 0o644, Data: tartest.Pattern(5000, 1)},
		{Name: "b", Type: '0', Mode: 0o644, Data: tartest.Pattern(50_000, 2)},
	}), stargz.WithChunkSize(16384), stargz.WithMinChunkSize(30_000))
	inst := lazily(t, s, l)
	b, err := blob.Open(s.Dir(inst.ID), inst.ID.Bytes(), blob.Options{})
	must(t, err)
	defer b.Close()
	extents, err := b.Extents(0, b.Count())
	must(t, err)
	var d Decoder
	inner := 0
	for i, x := range extents {
		data := make([]byte, x.Length)
		compressed := l.Blob[x.BlobOffset:][:x.BlobLength]
		must(t, d.Open(x.Kind, x.BlobOffset, compressed, nil))
		if err := d.Decode(x, data); err != nil || sha256.Sum256(data) != x.Digest {
			t.Errorf("extent %d: %v", i, err)
		}
		if x.InnerOffset > 0 {
			inner++
		}
		x.Digest[0]++
		must(t, d.Open(x.Kind, x.BlobOffset, compressed, nil))
		if err := d.Decode(x, data); err == nil {
			t.Errorf("extent %d: decoded with another digest", i)
		}
	}
	if inner == 0 || inner == len(extents) {
		t.Errorf("%d of %d extents are not the first in their range", inner, len(extents))
	}
}
