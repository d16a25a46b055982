package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/file"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

func TestUsedLast(t *testing.T) {
	at := func(hour int) time.Time { return time.Unix(int64(hour)*3600, 0) }
	for name, tc := range map[string]struct {
		layers []idleLayer
		limit  int64
		want   []layerstore.ID
	}{
		"none":                      {nil, 10, nil},
		"all fit":                   {[]idleLayer{{"a", 5, at(1)}, {"b", 5, at(2)}}, 10, []layerstore.ID{"a", "b"}},
		"the oldest goes":           {[]idleLayer{{"new", 5, at(3)}, {"old", 5, at(1)}, {"mid", 5, at(2)}}, 10, []layerstore.ID{"mid", "new"}},
		"nothing older than it":     {[]idleLayer{{"old", 1, at(1)}, {"mid", 6, at(2)}, {"new", 5, at(3)}}, 10, []layerstore.ID{"new"}},
		"too large for any":         {[]idleLayer{{"old", 5, at(1)}, {"huge", 11, at(2)}, {"new", 5, at(3)}}, 10, []layerstore.ID{"new", "old"}},
		"time not known":            {[]idleLayer{{"unknown", 5, time.Time{}}, {"a", 5, at(1)}, {"b", 5, at(2)}}, 10, []layerstore.ID{"a", "b"}},
		"same time":                 {[]idleLayer{{"b", 5, at(1)}, {"a", 5, at(1)}}, 5, []layerstore.ID{"a"}},
		"less than nothing is free": {[]idleLayer{{"a", 5, at(1)}}, -3, nil},
	} {
		got := slices.Sorted(maps.Keys(usedLast(tc.layers, tc.limit)))
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: kept %v, want %v", name, got, tc.want)
		}
	}
}

// keepingOn returns options with which layers of disk are kept up to a size.
func keepingOn(disk string, keep int64) Options {
	opts := immediate(filepath.Join(disk, "root"))
	opts.Keep = keep
	return opts
}

// noise returns what does not repeat and has no holes.
func noise(t testing.TB, size int, seed byte) string {
	t.Helper()
	b := make([]byte, size)
	_, err := rand.NewChaCha8([32]byte{seed}).Read(b)
	must(t, err)
	return string(b)
}

// wantKept checks which layers are there, by a name for each, while no snapshot refers to any.
func wantKept(t testing.TB, s *Snapshotter, names map[layerstore.ID]string, want ...string) {
	t.Helper()
	var have []string
	var bytes int64
	for _, inst := range s.layers.List() {
		have = append(have, names[inst.ID])
		u, err := s.layers.Usage(t.Context(), inst.ID)
		must(t, err)
		bytes += u.Bytes
	}
	slices.Sort(have)
	if !slices.Equal(have, want) {
		t.Errorf("kept: %q, want %q", have, want)
	}
	if got := s.KeptBytes(); got != bytes {
		t.Errorf("%d bytes are kept, the layers take %d", got, bytes)
	}
	if mounts := list(filepath.Join(s.root, "m")); len(mounts) > 0 {
		t.Errorf("still mounted: %v", mounts)
	}
}

// TestKeptLayers follows layers that no snapshot uses: through use again, a restart with a smaller cap, and one with none.
func TestKeptLayers(t *testing.T) {
	disk := smallDisk(t, 64<<20)
	root := filepath.Join(disk, "root")
	t.Cleanup(func() { unmountBelow(t, root) })
	const size = 1 << 20
	s := start(t, keepingOn(disk, 3*size+size/2))
	names := map[layerstore.ID]string{}
	content := map[string]string{}
	for i, name := range []string{"a", "b", "c", "d"} {
		content[name] = noise(t, size, byte(i))
		inst := pull(t, s, name, "", "file", content[name])
		names[inst.ID] = name
		mounts, err := s.View(t.Context(), "view "+name, name) // so that it is mounted
		must(t, err)
		if len(mounts) != 1 {
			t.Fatalf("mounts %v", mounts)
		}
		must(t, s.Remove(t.Context(), "view "+name))
	}
	remove := func(name string) {
		t.Helper()
		must(t, s.Remove(t.Context(), name))
		must(t, s.Cleanup(t.Context()))
	}
	for _, name := range []string{"b", "a", "d", "c"} {
		remove(name)
	}
	wantKept(t, s, names, "a", "c", "d")
	if got := s.Evictions(); got != 1 {
		t.Errorf("%d evictions, want 1", got)
	}

	// Used again: no byte of the blob is read, and a container sees it.
	layer := tarOf(t, "file", content["a"])
	_, pin, err := s.layers.Import(t.Context(), digest.FromBytes(layer), func(context.Context) (io.ReadCloser, error) {
		return nil, errors.New("opened a layer that is kept")
	})
	must(t, err)
	pin.Release()
	pull(t, s, "a", "", "file", content["a"])
	mounts, err := s.Prepare(t.Context(), "container", "a")
	must(t, err)
	t.Run("read", func(t *testing.T) { wantContent(t, filepath.Join(mounted(t, mounts, nil), "file"), content["a"]) })
	must(t, s.Cleanup(t.Context()))
	must(t, s.Remove(t.Context(), "container"))
	remove("a")
	wantKept(t, s, names, "a", "c", "d")

	// The order d, c, a is known after a restart, and goes on from there.
	must(t, s.Close())
	s = start(t, keepingOn(disk, 2*size+size/2))
	must(t, s.Cleanup(t.Context()))
	wantKept(t, s, names, "a", "c")
	pull(t, s, "d", "", "file", content["d"])
	remove("d")
	wantKept(t, s, names, "a", "d")

	must(t, s.Close())
	s = start(t, keepingOn(disk, 0))
	must(t, s.Cleanup(t.Context()))
	wantKept(t, s, names)
	must(t, checkConsistent(t.Context(), s))
}

// TestNotKept: what is in use is not counted, and what nobody can ask for goes.
func TestNotKept(t *testing.T) {
	disk := smallDisk(t, 64<<20)
	s := start(t, keepingOn(disk, 32<<20))
	t.Cleanup(func() { unmountBelow(t, s.root) })
	pull(t, s, "used", "", "file", noise(t, 1<<20, 1))
	commit(t, s, "directory", "", oneFile(t, "file", "content"))
	convertAll(t, s) // has a random id
	commit(t, s, "other", "", oneFile(t, "file", "content"))
	must(t, s.Remove(t.Context(), "directory"))
	must(t, s.Remove(t.Context(), "other"))
	pinned, pin := importTar(t, s, "file", noise(t, 1<<20, 2))
	must(t, s.Cleanup(t.Context()))
	if got := len(s.layers.List()); got != 2 || s.KeptBytes() != 0 || s.Evictions() != 0 {
		t.Errorf("%d layers, %d bytes kept, %d evictions; want the used and the pinned one, 0 and 0", got, s.KeptBytes(), s.Evictions())
	}
	if s.makeRoom(t.Context()) || len(s.layers.List()) != 2 {
		t.Error("room was made of what is in use")
	}
	pin.Release()
	must(t, s.Cleanup(t.Context()))
	if u, err := s.layers.Usage(t.Context(), pinned.ID); err != nil || s.KeptBytes() != u.Bytes {
		t.Errorf("%d bytes kept, want %d, %v", s.KeptBytes(), u.Bytes, err)
	}
	must(t, s.Remove(t.Context(), "used"))
	must(t, s.Cleanup(t.Context()))
	if !s.makeRoom(t.Context()) || s.Evictions() != 2 || s.KeptBytes() != 0 {
		t.Errorf("made room: %d evictions, %d bytes kept; want 2 and 0", s.Evictions(), s.KeptBytes())
	}
	must(t, checkConsistent(t.Context(), s))
}

// TestKeptLayersGiveWay: a filesystem that somebody else fills has a fifth of it free while there is something to delete.
func TestKeptLayersGiveWay(t *testing.T) {
	disk := smallDisk(t, 64<<20)
	s := start(t, keepingOn(disk, 64<<20))
	t.Cleanup(func() { unmountBelow(t, s.root) })
	for i := range 8 {
		name := fmt.Sprint(i)
		pull(t, s, name, "", "file", noise(t, 2<<20, byte(i)))
		must(t, s.Remove(t.Context(), name))
		must(t, s.Cleanup(t.Context()))
	}
	if got := len(s.layers.List()); got != 8 {
		t.Fatalf("%d layers are kept while the disk is nearly empty, want 8", got)
	}
	var st unix.Statfs_t
	must(t, unix.Statfs(disk, &st))
	// A fifth less 5 MiB is left free: three layers go.
	size := (int64(st.Bavail)-int64(st.Blocks/keepFree))*st.Bsize + 5<<20
	filler := filepath.Join(disk, "filler")
	must(t, os.WriteFile(filler, []byte(noise(t, int(size), 0)), 0o600))
	must(t, s.Cleanup(t.Context()))
	if got := len(s.layers.List()); got != 5 {
		t.Errorf("%d layers are kept on a disk that becomes full, want 5", got)
	}
	must(t, os.WriteFile(filler, []byte(noise(t, int(size)+10<<20, 0)), 0o600))
	must(t, s.Cleanup(t.Context()))
	if got := len(s.layers.List()); got != 0 || s.Evictions() != 8 {
		t.Errorf("%d layers are kept on a full disk after %d evictions", got, s.Evictions())
	}
}

// TestKeepUnderLoad: layers come into use again at the moment when they are unmounted, or deleted.
func TestKeepUnderLoad(t *testing.T) {
	const layers, size = 6, 64 << 10
	opts := Options{Root: newRoot(t), Backend: file.New(file.Options{}), Grace: time.Millisecond, Keep: layers / 2 * size}
	opts.Log = slog.New(slog.DiscardHandler)
	s := start(t, opts)
	stop := run(t, s)
	var tars [layers][]byte
	for i := range tars {
		tars[i] = tarOf(t, "file", noise(t, size, byte(i)))
	}
	var clients errgroup.Group
	for client := range 4 {
		clients.Go(func() error {
			for round := range 50 {
				which := rand.IntN(layers)
				if err := useOnce(s, fmt.Sprint(client, " ", round), tars[which], size); err != nil {
					return fmt.Errorf("round %d of client %d, layer %d: %w", round, client, which, err)
				}
				wake(s.wakeCollect)
			}
			return nil
		})
	}
	must(t, clients.Wait())
	stop()
	must(t, s.Close())
	s = start(t, immediate(opts.Root))
	must(t, s.Cleanup(t.Context()))
	must(t, checkConsistent(t.Context(), s))
}

// useOnce pulls an image of one layer with one file, looks at the file's size through a view of it, and removes both.
func useOnce(s *Snapshotter, name string, layer []byte, size int64) error {
	ctx := context.Background()
	mounts, err := s.Prepare(ctx, "extract "+name, "")
	if err != nil {
		return err
	}
	id, ok := s.ActiveSnapshot(ctx, mounts)
	if !ok {
		return fmt.Errorf("mounts %v are not recognized", mounts)
	}
	opened := 0
	inst, pin, err := s.layers.Import(ctx, digest.FromBytes(layer), countingOpener(layer, &opened))
	if err != nil {
		return err
	}
	err = s.Bind(ctx, id, inst.ID, ocispec.Descriptor{})
	pin.Release()
	if err != nil {
		return err
	}
	if err := s.Commit(ctx, name, "extract "+name); err != nil {
		return err
	}
	if mounts, err = s.View(ctx, "view "+name, name); err != nil {
		return err
	}
	fi, err := os.Stat(filepath.Join(mounts[0].Source, "file"))
	if err != nil {
		return err
	}
	if fi.Size() != size {
		return fmt.Errorf("the file has %d bytes, want %d", fi.Size(), size)
	}
	return errors.Join(s.Remove(ctx, "view "+name), s.Remove(ctx, name))
}
