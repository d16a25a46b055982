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
			w.wantUnpinned()
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
	w.wantUnpinned()
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

// TestSilentRegistry: however many layers wait for a registry that says nothing, what containerd has is made ready.
func TestSilentRegistry(t *testing.T) {
	for _, parallel := range []int{1, 2} {
		t.Run(fmt.Sprint(parallel), func(t *testing.T) {
			w := newWorld(t, parallel)
			w.serve(func(ctx context.Context, _ string, _ digest.Digest) (io.ReadCloser, error) { return stuck{ctx}, nil })
			ctx, cancel := context.WithCancel(w.ctx())
			var waiting sync.WaitGroup
			const silent = 5
			for i := range silent {
				p := w.add(fmt.Sprint(i), fmt.Sprint(i, " above"))
				waiting.Go(func() {
					if _, ok, err := w.Layer(ctx, p.announce(0), true); ok || !errors.Is(err, context.Canceled) {
						t.Errorf("image %d: ready %v, error %v", i, ok, err)
					}
				})
			}
			eventually(t, "all wait", func() bool { return len(w.layers.Working()) >= silent && w.requests() == parallel })
			p := w.add("pause")
			w.mu.Lock()
			w.content[p.layers[0].Digest] = p.blobs[0]
			w.mu.Unlock()
			w.prepare(p, 0, true)
			if n := w.requests(); n != parallel {
				t.Errorf("%d layers are fetched at a time, want %d", n, parallel)
			}
			cancel()
			waiting.Wait()
		})
	}
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
