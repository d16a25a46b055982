package lazy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/stargzlayer"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// TestLayer: of a layer with an index a small part is read, and everything is noted that is needed to fetch and check the rest.
func TestLayer(t *testing.T) {
	w := newWorld(t)
	l := w.add(sample(t))
	l.Annotations["org.example.other"] = "is not kept"
	inst := w.layer(image, l, true)
	lazy := *inst.Lazy
	if !inst.Partial() || inst.Layer != l.Digest || inst.DiffID != "" || lazy.DiffID != l.DiffID || lazy.Format != "estargz" ||
		!slices.Equal(lazy.Images, []string{image}) || lazy.Index.String() != l.Annotations[estargz.TOCJSONDigestAnnotation] {
		t.Errorf("made %+v, %+v", inst, lazy)
	}
	if d := Descriptor(inst); d.MediaType != l.MediaType || d.Digest != l.Digest || d.Size != l.Size ||
		!maps.Equal(d.Annotations, map[string]string{estargz.TOCJSONDigestAnnotation: lazy.Index.String()}) {
		t.Errorf("described as %+v", d)
	}
	before := len(w.asked)
	w.layer(image, l, true)
	if len(w.asked) != before || len(w.made) != 2 || len(w.store.List()) != 1 {
		t.Errorf("the second time asked for %d, told of %d; %d instances", len(w.asked)-before, len(w.made), len(w.store.List()))
	}
	if len(w.Fallbacks()) > 0 {
		t.Errorf("fallbacks %v", w.Fallbacks())
	}
}

// damaged is the layer with its blob changed; what a registry sends is not checked against the blob's digest at this point.
func (w *world) damaged(l stargzlayer.Layer, change func(blob []byte) []byte) stargzlayer.Layer {
	l.Blob = change(bytes.Clone(l.Blob))
	return w.add(l)
}

func TestFallbacks(t *testing.T) {
	l := sample(t)
	for name, c := range map[string]struct {
		options func(*Options)
		change  func(w *world, l stargzlayer.Layer) stargzlayer.Layer
		image   string
		reason  Reason
		cause   string
		quiet   bool // it is in the order of things, and not worth a warning
		unasked bool // the registry is not asked
	}{
		"no annotation": {
			change: func(_ *world, l stargzlayer.Layer) stargzlayer.Layer { l.Annotations = nil; return l },
			reason: NoIndex, cause: "names no index", quiet: true, unasked: true,
		},
		"annotations of two formats": {
			change: func(_ *world, l stargzlayer.Layer) stargzlayer.Layer {
				return l.Renamed("io.github.containers.zstd-chunked.manifest-checksum", l.Digest.String())
			},
			reason: BrokenIndex, cause: "zstd-chunked", unasked: true,
		},
		"no chunk digests": {
			change: func(w *world, l stargzlayer.Layer) stargzlayer.Layer {
				return w.add(l.WithTOC(t, func(toc *estargz.JTOC) {
					for _, e := range toc.Entries {
						e.ChunkDigest = ""
					}
				}))
			},
			reason: NoIndex, quiet: true,
		},
		"small": {
			options: func(o *Options) { o.MinLayerBytes = l.Size + 1 },
			reason:  Small, cause: fmt.Sprint("has ", l.Size, " bytes"), quiet: true, unasked: true,
		},
		"other repository": {
			options: func(o *Options) { o.Trust = []string{"registry.example:5000/team/other", "registry.example/*"} },
			reason:  Untrusted, cause: "lazy.trust", quiet: true, unasked: true,
		},
		"nobody is trusted": {options: func(o *Options) { o.Trust = nil }, reason: Untrusted, quiet: true, unasked: true},
		"no source":         {image: "-", reason: NoSource, unasked: true},
		"not ready": {
			change: func(w *world, l stargzlayer.Layer) stargzlayer.Layer { w.ready = errTest; return l },
			reason: NotReady, cause: errTest.Error(), unasked: true,
		},
		"not watched": {
			options: func(o *Options) { o.Made = func(layerstore.Instance, string) error { return errTest } },
			reason:  NotReady, cause: errTest.Error(),
		},
		"no answer": {
			change: func(w *world, l stargzlayer.Layer) stargzlayer.Layer {
				w.refuse = func(string) error { return errdefs.ErrUnavailable }
				return l
			},
			reason: Unavailable, cause: errdefs.ErrUnavailable.Error(),
		},
		"no blob": {
			change: func(w *world, l stargzlayer.Layer) stargzlayer.Layer { delete(w.blobs, l.Digest); return l },
			reason: Unavailable, cause: "not found",
		},
		"broken footer": {
			change: func(w *world, l stargzlayer.Layer) stargzlayer.Layer {
				return w.damaged(l, func(b []byte) []byte { b[len(b)-30] ^= 1; return b })
			},
			reason: BrokenIndex,
		},
		"other digest of the index": {
			change: func(_ *world, l stargzlayer.Layer) stargzlayer.Layer {
				return l.Renamed(estargz.TOCJSONDigestAnnotation, digest.FromString("other").String())
			},
			reason: BrokenIndex, cause: digest.FromString("other").String(),
		},
		"no digest": {
			change: func(_ *world, l stargzlayer.Layer) stargzlayer.Layer {
				return l.Renamed(estargz.TOCJSONDigestAnnotation, "sha256:1234")
			},
			reason: BrokenIndex,
		},
		"path out of the tree": {
			change: func(w *world, l stargzlayer.Layer) stargzlayer.Layer {
				return w.add(l.WithTOC(t, func(toc *estargz.JTOC) { toc.Entries[1].Name = "../../etc/passwd" }))
			},
			reason: BrokenIndex,
		},
		"data beyond the blob": {
			change: func(w *world, l stargzlayer.Layer) stargzlayer.Layer {
				return w.add(l.WithTOC(t, func(toc *estargz.JTOC) { toc.Entries[len(toc.Entries)-1].Offset = 1 << 40 }))
			},
			reason: BrokenIndex,
		},
		"too large": {options: func(o *Options) { o.Limits.Bytes = 100 }, reason: BrokenIndex, cause: "limit exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			var options []func(*Options)
			if c.options != nil {
				options = append(options, c.options)
			}
			w := newWorld(t, options...)
			asked := w.add(l)
			if c.change != nil {
				asked = c.change(w, asked)
			}
			from := image
			if c.image == "-" {
				from = ""
			}
			w.layer(from, asked, false)
			w.wantFallback(c.reason, c.cause)
			if f := w.Fallbacks()[c.reason]; f.Image != from {
				t.Errorf("counted for %q", f.Image)
			}
			if loud := strings.Contains(w.log.String(), "level=WARN"); loud == c.quiet {
				t.Errorf("log: %s", w.log)
			}
			if c.unasked && len(w.asked) > 0 {
				t.Errorf("asked for %v", w.asked)
			}
			if c.reason != NotReady && len(w.store.List()) > 0 {
				t.Errorf("left %+v", w.store.List())
			}
		})
	}
}

// TestCorruptIndex: what comes corrupt from one host is asked of another one, a few times; then the layer is pulled as a whole.
func TestCorruptIndex(t *testing.T) {
	l := sample(t)
	changed := func(fromEnd int) []byte {
		b := bytes.Clone(l.Blob)
		b[len(b)-fromEnd] ^= 1
		return b
	}
	footer, table := changed(30), changed(estargz.FooterSize+100)
	for name, c := range map[string]struct {
		before  [][]byte
		lazy    bool
		corrupt int64
	}{
		"right":   {nil, true, 0},
		"footer":  {[][]byte{footer}, true, 1},
		"table":   {[][]byte{table}, true, 1},
		"thrice":  {[][]byte{table, footer, table}, true, 3},
		"forever": {[][]byte{table, footer, table, table, table}, false, 4},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.before = c.before
			w.layer(image, w.add(l), c.lazy)
			if n := w.CorruptIndexes(); n != c.corrupt {
				t.Errorf("%d indexes were corrupt, want %d", n, c.corrupt)
			}
			said := strings.Count(w.log.String(), "corrupt index of a layer")
			if want := min(int(c.corrupt), indexAttempts-1); said != want {
				t.Errorf("said %d times, want %d:\n%s", said, want, w.log)
			}
			if !c.lazy {
				w.wantFallback(BrokenIndex, "corrupt 4 times")
			}
		})
	}
}

// TestCorruptThenUnavailable: when no other host answers, that is the reason, and what came before is said.
func TestCorruptThenUnavailable(t *testing.T) {
	w := newWorld(t)
	l := w.add(sample(t))
	w.before = [][]byte{make([]byte, l.Size)}
	w.refuse = func(string) error {
		if len(w.asked) > 1 {
			return errdefs.ErrUnavailable
		}
		return nil
	}
	w.layer(image, l, false)
	w.wantFallback(Unavailable, "no eStargz footer")
}

// TestBrokenForEverybody: an index that is what its manifest names is not asked for again, although it makes no sense, and neither is one whose
// manifest makes none.
func TestBrokenForEverybody(t *testing.T) {
	w := newWorld(t)
	nonsense := w.add(sample(t).WithTOC(t, func(toc *estargz.JTOC) { toc.Entries[1].Name = "../../etc/passwd" }))
	w.layer(image, nonsense, false)
	asked := len(w.asked)
	w.layer(image, w.add(sample(t)).Renamed(estargz.TOCJSONDigestAnnotation, "sha256:1234"), false)
	if len(w.asked) != asked || asked > 2 || w.CorruptIndexes() > 0 {
		t.Errorf("asked %d, then %d times; %d corrupt", asked, len(w.asked), w.CorruptIndexes())
	}
}

// TestNotCounted: what is here as a whole, and what is switched off, is no fallback.
func TestNotCounted(t *testing.T) {
	l := sample(t)
	off := newWorld(t, func(o *Options) { o.Off = true })
	off.layer(image, off.add(l), false)
	whole := newWorld(t)
	_, pin, err := whole.store.Import(t.Context(), l.Digest, func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(l.Blob)), nil
	})
	must(t, err)
	pin.Release()
	whole.layer(image, whole.add(l), false)
	for _, w := range []*world{off, whole} {
		if len(w.Fallbacks()) > 0 || len(w.asked) > 0 {
			t.Errorf("fallbacks %v, asked for %v", w.Fallbacks(), w.asked)
		}
	}
}

// TestCount: each layer counts, and the last one is described.
func TestCount(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.MinLayerBytes = 1 << 40 })
	for _, image := range []string{"a.example/x:1", "a.example/y:1"} {
		w.layer(image, sample(t), false)
	}
	if f := w.Fallbacks()[Small]; f.Count != 2 || f.Image != "a.example/y:1" {
		t.Errorf("%+v", f)
	}
}

// TestEndOfARequest: who gives up gets the reason, which is no fallback, and neither is a full disk.
func TestEndOfARequest(t *testing.T) {
	w := newWorld(t)
	l := w.add(sample(t))
	ctx, cancel := context.WithCancelCause(t.Context())
	w.refuse = func(string) error { cancel(errTest); return errdefs.ErrUnavailable }
	if _, _, ok, err := w.Layer(ctx, w.store, image, l.Descriptor, l.DiffID); ok || !errors.Is(err, errTest) {
		t.Errorf("lazy %v, error %v", ok, err)
	}
	w.refuse = func(string) error { return layerstore.Full(fmt.Errorf("disk: %w", unix.ENOSPC)) }
	if _, _, ok, err := w.Layer(t.Context(), w.store, image, l.Descriptor, l.DiffID); ok || !errdefs.IsResourceExhausted(err) {
		t.Errorf("full disk: lazy %v, error %v", ok, err)
	}
	if len(w.Fallbacks()) > 0 {
		t.Errorf("fallbacks %v", w.Fallbacks())
	}
}

// TestIndexIsPartOfTheID: a layer with another index may be another tree, so it is another instance; with the same one it is shared.
func TestIndexIsPartOfTheID(t *testing.T) {
	w := newWorld(t)
	honest := w.add(sample(t))
	inst := w.layer(image, honest, true)

	// The same blob: another manifest names an index that is nowhere.
	w.layer("evil.example/app:1", honest.Renamed(estargz.TOCJSONDigestAnnotation, digest.FromString("other").String()), false)
	// An annotation that nobody reads, but that names an index.
	if other := w.layer(image, honest.Renamed("io.containers.zstd-chunked.x", "y"), true); other.ID == inst.ID {
		t.Error("two manifests with other annotations share an instance")
	}
	for _, l := range []stargzlayer.Layer{honest, honest.Renamed("org.example.title", "other")} {
		if same := w.layer("other.example/app:1", l, true); same.ID != inst.ID {
			t.Errorf("two manifests with the same index have instances %s and %s", inst.ID, same.ID)
		}
	}
	if layerstore.EagerID(honest.Digest) == inst.ID {
		t.Error("a lazy instance has the id of the whole layer")
	}
}

// TestSharedAtOnce: pulls that want a layer at the same time share what is made.
func TestSharedAtOnce(t *testing.T) {
	w := newWorld(t)
	l := w.add(sample(t))
	const pulls = 8
	ids := make(chan layerstore.ID, pulls)
	var busy sync.WaitGroup
	for i := range pulls {
		busy.Go(func() {
			inst, pin, ok, err := w.Layer(t.Context(), w.store, fmt.Sprintf("h%d.example/app:1", i), l.Descriptor, l.DiffID)
			if !ok || err != nil {
				t.Errorf("lazy %v, error %v", ok, err)
			}
			pin.Release()
			ids <- inst.ID
		})
	}
	busy.Wait()
	first := <-ids
	for range pulls - 1 {
		if id := <-ids; id != first {
			t.Errorf("instances %s and %s", first, id)
		}
	}
	if len(w.asked) > 2 { // the index takes two reads at most
		t.Errorf("%d reads", len(w.asked))
	}
	inst, err := w.store.Get(first)
	must(t, err)
	if len(inst.Lazy.Images) != pulls {
		t.Errorf("images %q", inst.Lazy.Images)
	}
}

// TestImages: every image that has a layer can be asked for it later, the first one first.
func TestImages(t *testing.T) {
	w := newWorld(t)
	l := w.add(sample(t))
	images := []string{image, "mirror.example/app:1", image, "third.example/app:1"}
	for _, from := range images {
		w.layer(from, l, true)
	}
	inst, err := w.store.Get(layerstore.LazyID(l.Digest, l.Annotations))
	must(t, err)
	if want := []string{image, "mirror.example/app:1", "third.example/app:1"}; !slices.Equal(inst.Lazy.Images, want) {
		t.Errorf("images %q, want %q", inst.Lazy.Images, want)
	}
}

// TestOtherDiffID: an image that claims another diffID for the same layer gets the whole of it, whichever comes first; the other image is not
// touched by that.
func TestOtherDiffID(t *testing.T) {
	w := newWorld(t)
	honest := w.add(sample(t))
	w.layer(image, honest, true)
	liar := honest
	liar.DiffID = digest.FromString("another image's layer")
	w.layer("evil.example/app:1", liar, false)
	w.wantFallback(Mismatch, honest.DiffID.String())
	inst := w.layer(image, honest, true)
	if inst.Lazy.DiffID != honest.DiffID || slices.Contains(inst.Lazy.Images, "evil.example/app:1") {
		t.Errorf("%+v", inst.Lazy)
	}
}

// TestFoundOut: a layer that was found to be another one than its image says is not loaded on demand again.
func TestFoundOut(t *testing.T) {
	w := newWorld(t)
	l := w.add(sample(t))
	inst := w.layer(image, l, true)
	must(t, w.store.SetMismatch(inst.ID, errTest))
	made := len(w.made)
	w.layer(image, l, false)
	w.wantFallback(Mismatch, errTest.Error())
	if len(w.made) != made {
		t.Error("somebody was told of it")
	}
}

// TestAgain: what was made once is made again, also where it would not be made now.
func TestAgain(t *testing.T) {
	l := sample(t)
	w := newWorld(t, func(o *Options) { o.MinLayerBytes, o.Trust, o.Off = 1<<40, nil, true })
	w.add(l)
	inst, pin, err := w.Again(t.Context(), w.store, image, l.Descriptor, l.DiffID)
	must(t, err)
	defer pin.Release()
	if inst.ID != layerstore.LazyID(l.Digest, l.Annotations) || !inst.Partial() || len(w.made) != 1 {
		t.Errorf("made %+v, told of %d", inst, len(w.made))
	}
	w.refuse = func(string) error { return errdefs.ErrUnavailable }
	lost := stargzlayer.Layer{Descriptor: ocispec.Descriptor{Digest: digest.FromString("x"), Size: 1000, Annotations: l.Annotations}}
	if _, _, err := w.Again(t.Context(), w.store, image, lost.Descriptor, l.DiffID); !errdefs.IsUnavailable(err) {
		t.Errorf("without a registry: %v", err)
	}
}

func TestIndexAnnotations(t *testing.T) {
	all := map[string]string{
		"containerd.io/snapshot/stargz/toc.digest": "a", "io.github.containers.zstd-chunked.manifest-position": "b",
		"io.containers.zstd-chunked.manifest-checksum": "c", "org.opencontainers.image.title": "d",
		"containerd.io/snapshot/remote/stargz.reference": "e",
	}
	got := IndexAnnotations(all)
	if len(got) != 3 || len(all) != 5 || got["org.opencontainers.image.title"] != "" {
		t.Errorf("got %v of %v", got, all)
	}
	if got := IndexAnnotations(nil); len(got) != 0 {
		t.Errorf("got %v of nothing", got)
	}
}

// TestBounds: bounds of the converter hold for indexes too.
func TestBounds(t *testing.T) {
	store, err := layerstore.Open(t.TempDir(), layerstore.Options{Limits: converter.Limits{Inodes: 2}})
	must(t, err)
	t.Cleanup(func() { must(t, store.Close()) })
	w := newWorld(t)
	w.store = store
	w.layer(image, w.add(sample(t)), false)
	w.wantFallback(BrokenIndex, "more than 2 entries")
}
