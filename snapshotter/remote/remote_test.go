package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// TestPull: every layer comes from the registry, once, and nothing stays pinned.
func TestPull(t *testing.T) {
	for _, parallel := range []int{1, 2, 8} {
		t.Run(fmt.Sprint(parallel), func(t *testing.T) {
			w := newWorld(t, parallel)
			p := w.add("a", "b", "c", "d")
			for i := range p.layers {
				w.prepare(p, i, true)
			}
			if w.requests() != len(p.layers) || w.Stats() != (Stats{Layers: 4, Pulls: 1}) || len(w.Fallbacks()) > 0 {
				t.Errorf("%d requests for %d layers, %+v, fallbacks %v", w.requests(), len(p.layers), w.Stats(), w.Fallbacks())
			}
			for _, inst := range w.layers.List() {
				if w.layers.Pinned(inst.ID) {
					t.Errorf("layer %s is pinned after the pull", inst.Layer)
				}
			}
			pulls := w.Pulls()
			if len(pulls) != 1 || pulls[0].Ended.IsZero() || pulls[0].Image != appImage || pulls[0].Namespace != "default" {
				t.Fatalf("pulls: %+v", pulls)
			}
			for _, l := range pulls[0].Layers {
				if l.State != Done || l.Size == 0 {
					t.Errorf("layer %+v", l)
				}
			}
		})
	}
}

// TestWorkAhead: while one layer is made the next ones are, too, and they are kept until they are asked for.
func TestWorkAhead(t *testing.T) {
	w := newWorld(t, 3)
	p := w.add("a", "b", "c", "d")
	w.prepare(p, 0, true)
	eventually(t, "all layers are there", func() bool { return len(w.layers.List()) == 4 })
	eventually(t, "three are ready", func() bool {
		ready := 0
		for _, l := range w.Pulls()[0].Layers {
			if l.State == Ready {
				ready++
			}
		}
		return ready == 3
	})
	for _, inst := range w.layers.List() {
		if inst.Layer != p.layers[0].Digest && !w.layers.Pinned(inst.ID) {
			t.Errorf("layer %s is not pinned", inst.Layer)
		}
	}
	w.Close()
	for _, inst := range w.layers.List() {
		if w.layers.Pinned(inst.ID) {
			t.Errorf("layer %s is pinned after Close", inst.Layer)
		}
	}
}

// TestContentFirst: what containerd has is not asked for at a registry, which may not even be known.
func TestContentFirst(t *testing.T) {
	w := newWorld(t, 2)
	p := w.add("a", "b")
	w.labels = nil // of an image that was imported
	for i, l := range p.layers {
		w.content[l.Digest] = p.blobs[i]
	}
	w.prepare(p, 0, true)
	w.prepare(p, 1, true)
	if w.requests() > 0 {
		t.Errorf("the registry was asked for %v", w.asked)
	}
}

// TestNotAnnounced: without all labels, or without a namespace, nothing happens.
func TestNotAnnounced(t *testing.T) {
	w := newWorld(t, 2)
	p := w.add("a")
	for missing := range p.announce(0) {
		labels := p.announce(0)
		delete(labels, missing)
		if _, ok, err := w.Layer(w.ctx(), labels, true); ok || err != nil {
			t.Errorf("without %s: ready %v, error %v", missing, ok, err)
		}
	}
	if _, ok, err := w.Layer(t.Context(), p.announce(0), true); ok || err != nil {
		t.Errorf("without a namespace: ready %v, error %v", ok, err)
	}
	if w.requests() > 0 || len(w.Fallbacks()) > 0 {
		t.Errorf("requests %v, fallbacks %v", w.asked, w.Fallbacks())
	}
}

// TestForgedLabels: labels that do not fit what containerd has make nobody ask a registry, and nothing is made.
func TestForgedLabels(t *testing.T) {
	other := digest.FromString("other").String()
	for name, c := range map[string]struct {
		key, value string
		reason     Reason
	}{
		"host":       {snapshotters.TargetRefLabel, "evil.example/team/app:1", NoSource},
		"repository": {snapshotters.TargetRefLabel, "registry.example:5000/team/app2:1", NoSource},
		"no image":   {snapshotters.TargetRefLabel, "app", NoSource},
		"manifest":   {snapshotters.TargetManifestDigestLabel, other, NoManifest},
		"layer":      {snapshotters.TargetLayerDigestLabel, other, BadLabels},
		"target":     {TargetLabel, other, BadLabels},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 2)
			p := w.add("a", "b")
			labels := p.announce(0)
			labels[c.key] = c.value
			if _, ok, err := w.Layer(w.ctx(), labels, true); ok || err != nil {
				t.Fatalf("ready %v, error %v", ok, err)
			}
			if all := w.Fallbacks(); all[c.reason].Count != 1 || len(all) != 1 {
				t.Errorf("fallbacks %+v, want %s", all, c.reason)
			}
			w.Close()
			if w.requests() > 0 || len(w.layers.List()) > 0 {
				t.Errorf("the registry was asked for %v; there are %d layers", w.asked, len(w.layers.List()))
			}
		})
	}
}

// TestWrongParent: a layer goes on the one below it.
func TestWrongParent(t *testing.T) {
	w := newWorld(t, 2)
	p := w.add("a", "b")
	for i, root := range []bool{false, true} {
		if _, ok, err := w.Layer(w.ctx(), p.announce(i), root); ok || err != nil {
			t.Errorf("layer %d: ready %v, error %v", i, ok, err)
		}
	}
	if w.requests() > 0 {
		t.Errorf("the registry was asked for %v", w.asked)
	}
}

// TestLyingImage: an image that claims the diffIDs of another gets none of its layers, whichever comes first, and leaves nothing behind.
func TestLyingImage(t *testing.T) {
	for _, first := range []string{"liar", "honest"} {
		t.Run(first+" first", func(t *testing.T) {
			w := newWorld(t, 2)
			honest := w.add("good", "more")
			liar := w.addWith([][]byte{tarOf(t, "bad"), tarOf(t, "worse")}, []digest.Digest{honest.layers[0].Digest, honest.layers[1].Digest})
			if first == "honest" {
				w.prepare(honest, 0, true)
			}
			w.prepare(liar, 0, false)
			w.wantFallback(Digest, "the image's configuration says "+honest.layers[0].Digest.String())
			w.prepare(honest, 0, true)
			w.prepare(honest, 1, true)
		})
	}
}

// TestDigestMismatch: a registry that sends other bytes.
func TestDigestMismatch(t *testing.T) {
	w := newWorld(t, 1)
	p := w.add("a")
	w.remote[p.layers[0].Digest] = tarOf(t, "b")
	w.prepare(p, 0, false)
	w.wantFallback(Digest, p.layers[0].Digest.String())
	if len(w.layers.List()) > 0 {
		t.Error("a layer stayed")
	}
}

// TestFallback: each failure has its reason, ends work ahead, and decides for the rest of the pull; one that begins anew is tried anew.
func TestFallback(t *testing.T) {
	for reason, failure := range map[Reason]error{
		NotFound:     errdefs.ErrNotFound,
		Unauthorized: errdefs.ErrUnauthenticated,
		Unavailable:  errdefs.ErrUnavailable,
		BadAnswer:    errdefs.ErrFailedPrecondition,
		Failed:       errors.New("strange"),
	} {
		t.Run(string(reason), func(t *testing.T) {
			w := newWorld(t, 2)
			p := w.add("a", "b", "c")
			w.serve(func(_ context.Context, _ string, layer digest.Digest) (io.ReadCloser, error) {
				if layer != p.layers[0].Digest {
					return nil, failure
				}
				return io.NopCloser(bytes.NewReader(p.blobs[0])), nil
			})
			w.prepare(p, 0, true)
			w.prepare(p, 1, false)
			w.wantFallback(reason, failure.Error())
			before := w.requests()
			w.prepare(p, 2, false)
			if w.requests() != before {
				t.Error("a layer above was asked for at the registry")
			}
			w.wantFallback(reason, failure.Error())
			if n := strings.Count(w.log.String(), "containerd fetches"); n != 1 {
				t.Errorf("logged %d times, want once:\n%s", n, w.log)
			}
			w.serve(nil)
			for i := range p.layers {
				w.prepare(p, i, true)
			}
		})
	}
}

// TestMediaType: a layer that is no tar stream is left to containerd, and those below it are not.
func TestMediaType(t *testing.T) {
	w := newWorld(t, 4)
	p := w.add("a", "b")
	manifest := string(w.content[p.manifest])
	i := strings.LastIndex(manifest, "vnd.oci.image.layer.v1.tar")
	changed := []byte(manifest[:i] + strings.Replace(manifest[i:], "v1.tar", "v1.tar+encrypted", 1))
	p.manifest = digest.FromBytes(changed)
	w.content[p.manifest] = changed
	w.prepare(p, 0, true)
	w.prepare(p, 1, false)
	w.wantFallback(MediaType, "+encrypted")
	if w.requests() != 1 {
		t.Errorf("%d requests, want one", w.requests())
	}
}

// TestDiskFull: containerd would need even more room, so the client gets the error.
func TestDiskFull(t *testing.T) {
	w := newWorld(t, 1)
	p := w.add("a")
	w.serve(func(context.Context, string, digest.Digest) (io.ReadCloser, error) { return nil, unix.ENOSPC })
	_, ok, err := w.Layer(w.ctx(), p.announce(0), true)
	if ok || !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), p.layers[0].Digest.String()) {
		t.Errorf("ready %v, error %v", ok, err)
	}
	if len(w.Fallbacks()) > 0 {
		t.Error("it fell back")
	}
}

// stuck is a blob that gives no byte before its context ends.
type stuck struct{ ctx context.Context }

func (s stuck) Read([]byte) (int, error) {
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}
func (s stuck) Close() error { return nil }

// TestCancel: a client that gives up stops what nobody else waits for, work ahead included, and that is no fallback.
func TestCancel(t *testing.T) {
	w := newWorld(t, 2)
	p := w.add("a", "b", "c")
	var mu sync.Mutex
	opened := map[digest.Digest]context.Context{}
	w.serve(func(ctx context.Context, _ string, layer digest.Digest) (io.ReadCloser, error) {
		mu.Lock()
		defer mu.Unlock()
		opened[layer] = ctx
		return stuck{ctx}, nil
	})
	ctx, cancel := context.WithCancel(w.ctx())
	failed := make(chan error, 1)
	go func() {
		_, _, err := w.Layer(ctx, p.announce(0), true)
		failed <- err
	}()
	eventually(t, "two layers are fetched", func() bool { mu.Lock(); defer mu.Unlock(); return len(opened) == 2 })
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	for _, blob := range opened {
		<-blob.Done()
	}
	eventually(t, "nothing is made any more", func() bool { return len(w.layers.Working()) == 0 })
	if len(w.Fallbacks()) > 0 || len(opened) > 2 {
		t.Errorf("fallbacks %v; %d layers were begun", w.Fallbacks(), len(opened))
	}
	w.serve(nil)
	w.prepare(p, 0, true)
}

// TestSharedLayer: a layer that several pulls want at once is fetched once; and if the first cannot have it, another may.
func TestSharedLayer(t *testing.T) {
	w := newWorld(t, 4)
	p := w.add("a")
	begun, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.serve(func(_ context.Context, image string, layer digest.Digest) (io.ReadCloser, error) {
		once.Do(func() { close(begun) })
		<-release
		if strings.Contains(image, "private") {
			return nil, errdefs.ErrUnauthenticated
		}
		return io.NopCloser(bytes.NewReader(w.remote[layer])), nil
	})
	w.labels[sourceKey] = "team/app,team/private"
	private := p.announce(0)
	private[snapshotters.TargetRefLabel] = "registry.example:5000/team/private:1"
	type answer struct {
		ok  bool
		err error
	}
	refused, fine := make(chan answer, 1), make(chan answer, 8)
	ask := func(namespace string, labels map[string]string, to chan answer) {
		layer, ok, err := w.Layer(namespaces.WithNamespace(t.Context(), namespace), labels, true)
		layer.Pin.Release()
		to <- answer{ok, err}
	}
	go ask("default", private, refused)
	<-begun
	for i := range cap(fine) {
		go ask(fmt.Sprintf("ns%d", i%2), maps.Clone(p.announce(0)), fine)
	}
	eventually(t, "all wait", func() bool { work := w.layers.Working(); return len(work) == 1 && work[0].Waiters == 1+cap(fine) })
	close(release)
	if a := <-refused; a.ok || a.err != nil {
		t.Errorf("the pull without access: %+v", a)
	}
	for range cap(fine) {
		if a := <-fine; !a.ok || a.err != nil {
			t.Errorf("a pull with access: %+v", a)
		}
	}
	if w.requests() != 2 {
		t.Errorf("%d requests, want one refused and one for all others", w.requests())
	}
}

// TestOpen: for making a layer again, the content store comes first, and without an image nobody else is asked.
func TestOpen(t *testing.T) {
	w := newWorld(t, 1)
	p := w.add("a")
	if _, err := w.Open(w.ctx(), "", p.layers[0]); !errdefs.IsNotFound(err) || w.requests() > 0 {
		t.Errorf("without an image: %v, requests %v", err, w.asked)
	}
	blob, err := w.Open(w.ctx(), appImage, p.layers[0])
	must(t, err)
	if b, err := io.ReadAll(blob); err != nil || !bytes.Equal(b, p.blobs[0]) {
		t.Errorf("got %d bytes, error %v", len(b), err)
	}
}

func TestBadImages(t *testing.T) {
	for name, c := range map[string]struct{ manifest, config string }{
		"no json":        {"{", "{}"},
		"no layers":      {`{}`, "{}"},
		"bad digest":     {`{"layers":[{"digest":"sha256:1","size":1}]}`, "{}"},
		"negative size":  {fmt.Sprintf(`{"config":{"digest":%q},"layers":[{"digest":%q,"size":-1}]}`, digest.FromString(""), digest.FromString("")), "{}"},
		"config no json": {oneLayer(1), "["},
		"no diff_ids":    {oneLayer(1), "{}"},
		"bad diff_id":    {oneLayer(1), `{"rootfs":{"diff_ids":["sha256:x"]}}`},
		"many layers":    {oneLayer(maxLayers + 1), "{}"},
	} {
		t.Run(name, func(t *testing.T) {
			img, _, err := parseManifest([]byte(c.manifest))
			if err == nil {
				err = img.addConfig([]byte(c.config))
			}
			if err == nil {
				t.Error("no error")
			}
		})
	}
}

// oneLayer is a manifest with n times the same layer.
func oneLayer(n int) string {
	layer := fmt.Sprintf(`{"digest":%q,"size":1}`, digest.FromString(""))
	return fmt.Sprintf(`{"config":%s,"layers":[%s]}`, layer, strings.TrimSuffix(strings.Repeat(layer+",", n), ","))
}

// FuzzImage: whatever manifest and configuration say, an image that is accepted can be asked for each of its layers, and only for them.
func FuzzImage(f *testing.F) {
	f.Add([]byte(oneLayer(1)), []byte(fmt.Sprintf(`{"rootfs":{"diff_ids":[%q]}}`, digest.FromString("x"))))
	f.Add([]byte(oneLayer(2)), []byte(fmt.Sprintf(`{"rootfs":{"diff_ids":[%q,%q]}}`, digest.FromString("x"), digest.FromString("x"))))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		img, configDigest, err := parseManifest(manifest)
		if err != nil {
			return
		}
		if err := configDigest.Validate(); err != nil {
			t.Fatal(err)
		}
		if img.addConfig(config) != nil {
			return
		}
		for i, l := range img.layers {
			at, err := img.place(announcement{layer: l.Digest, target: img.chains[i]}, i == 0)
			if layerstore.Importable(l.MediaType) && (err != nil || at != i) {
				t.Fatalf("layer %d found at %d: %v", i, at, err)
			}
		}
		if _, err := img.place(announcement{layer: img.layers[0].Digest, target: digest.FromString("no chain")}, true); err == nil {
			t.Fatal("an unknown chain ID was found")
		}
	})
}
