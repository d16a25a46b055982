package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// TestChaos: clients of two namespaces pull images that share layers, give up and go away at random, from a registry that fails at random, while
// layers that nobody holds are deleted. Whoever gets a layer gets the right one and holds it; in the end nothing is left of it all, and every
// image can be pulled.
func TestChaos(t *testing.T) {
	before := runtime.NumGoroutine()
	w := newWorld(t, 3)
	var images []picture
	for i := range 6 {
		shared := fmt.Sprint("shared ", i%2)
		images = append(images, w.add("base", shared, fmt.Sprint("own ", i), fmt.Sprint("twice ", i), fmt.Sprint("twice ", i), "top"))
	}
	w.serve(func(ctx context.Context, _ string, layer digest.Digest) (io.ReadCloser, error) {
		w.mu.Lock()
		b := w.remote[layer]
		w.mu.Unlock()
		switch rand.IntN(30) {
		case 0:
			return nil, errdefs.ErrUnavailable
		case 1:
			return stalls(ctx), nil
		case 2:
			return io.NopCloser(io.MultiReader(bytes.NewReader(b[:700]), stalls(ctx))), nil
		case 3:
			return io.NopCloser(bytes.NewReader(b[:700])), nil
		case 4:
			return io.NopCloser(bytes.NewReader(bytes.Repeat([]byte{0}, len(b)))), nil
		}
		time.Sleep(rand.N(2 * time.Millisecond))
		return io.NopCloser(bytes.NewReader(b)), nil
	})

	ctx, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	var busy sync.WaitGroup
	for client := range 8 {
		busy.Go(func() {
			ctx := namespaces.WithNamespace(ctx, fmt.Sprint("ns", client%2))
			for ctx.Err() == nil {
				w.pullInChaos(ctx, images[rand.IntN(len(images))])
			}
		})
	}
	busy.Go(func() { // collection
		for ctx.Err() == nil {
			for _, inst := range w.layers.List() {
				if err := w.layers.Discard(inst.ID); err != nil && !errdefs.IsFailedPrecondition(err) {
					t.Errorf("discard: %v", err)
				}
			}
			must(t, w.layers.DeleteDiscarded())
			time.Sleep(rand.N(5 * time.Millisecond))
		}
	})
	busy.Wait()
	eventually(t, "what was begun has ended", func() bool { return len(w.layers.Working()) == 0 })

	w.serve(nil)
	for _, p := range images {
		for i := range p.layers {
			w.prepare(p, i, true)
		}
	}
	w.Close()
	w.wantUnpinned()
	eventually(t, "nothing is made any more", func() bool { return len(w.layers.Working()) == 0 })
	eventually(t, "all goroutines have ended", func() bool { return runtime.NumGoroutine() <= before })
}

// stalls is a blob that gives nothing until a registry's client has had enough.
func stalls(ctx context.Context) stuck {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	context.AfterFunc(ctx, cancel)
	return stuck{ctx}
}

// pullInChaos asks for the layers of an image until one is left to containerd or the client gives up.
func (w *world) pullInChaos(ctx context.Context, p picture) {
	for i := range p.layers {
		asked, cancel := context.WithTimeout(ctx, rand.N(100*time.Millisecond))
		layer, ok, err := w.Layer(asked, p.announce(i), i == 0)
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			w.t.Errorf("layer %d: %v", i, err)
		}
		if !ok {
			return
		}
		if id := layerstore.EagerID(p.layers[i].Digest); layer.Instance.ID != id || !w.layers.Pinned(id) {
			w.t.Errorf("layer %d: got %s, pinned %v", i, layer.Instance.Layer, w.layers.Pinned(id))
		} else if _, err := w.layers.Get(id); err != nil {
			w.t.Errorf("layer %d is not there: %v", i, err)
		}
		layer.Pin.Release()
		if rand.IntN(8) == 0 {
			return
		}
	}
}
