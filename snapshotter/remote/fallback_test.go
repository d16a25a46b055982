package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

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

// TestLateFailure: a request of a pull that has fallen back fails later still, which does nothing to the pull that was begun anew meanwhile.
func TestLateFailure(t *testing.T) {
	w := newWorld(t, 3)
	p := w.add("a", "b", "c")
	begun, release := make(chan struct{}), make(chan struct{})
	w.serve(func(_ context.Context, _ string, layer digest.Digest) (io.ReadCloser, error) {
		switch layer {
		case p.layers[0].Digest:
			close(begun)
			<-release
			return nil, errdefs.ErrUnavailable
		case p.layers[2].Digest:
			return nil, errdefs.ErrNotFound
		}
		return io.NopCloser(bytes.NewReader(p.blobs[1])), nil
	})
	var late sync.WaitGroup
	late.Go(func() {
		if _, ok, err := w.Layer(w.ctx(), p.announce(0), true); ok || err != nil {
			t.Errorf("the late request: ready %v, error %v", ok, err)
		}
	})
	<-begun
	w.prepare(p, 2, false)
	w.serve(nil)
	w.prepare(p, 1, true)
	close(release)
	late.Wait()
	w.prepare(p, 2, true)
	if n := w.Stats().Pulls; n != 1 {
		t.Errorf("%d pulls, want 1", n)
	}
}

// TestMediaType: a layer that is no tar stream is left to containerd with those above it, and those below it are not.
func TestMediaType(t *testing.T) {
	for encrypted := range 3 {
		t.Run(fmt.Sprint(encrypted), func(t *testing.T) {
			w := newWorld(t, 4)
			p := w.add("a", "b", "c")
			manifest := bytes.SplitAfterN(w.content[p.manifest], []byte("vnd.oci.image.layer.v1.tar"), encrypted+2)
			manifest[encrypted] = append(manifest[encrypted][:len(manifest[encrypted]):len(manifest[encrypted])], "+encrypted"...)
			changed := bytes.Join(manifest, nil)
			p.manifest = digest.FromBytes(changed)
			w.content[p.manifest] = changed
			for i := range p.layers {
				w.prepare(p, i, i < encrypted)
			}
			w.wantFallback(MediaType, "+encrypted")
			if w.requests() != encrypted {
				t.Errorf("%d requests, want %d", w.requests(), encrypted)
			}
			for i, l := range w.Pulls()[0].Layers {
				if (l.State == Local) != (i >= encrypted) {
					t.Errorf("layer %d is %s", i, l.State)
				}
			}
		})
	}
}

// TestForgedLabelsLeaveOthersAlone: a request with labels that do not fit ends nothing of the pull that they name, and of no later one.
func TestForgedLabelsLeaveOthersAlone(t *testing.T) {
	w := newWorld(t, 1)
	p := w.add("a", "b")
	forged := p.announce(1)
	forged[snapshotters.TargetLayerDigestLabel] = digest.FromString("other").String()
	for i := range p.layers {
		if _, ok, err := w.Layer(w.ctx(), forged, false); ok || err != nil {
			t.Fatalf("forged: ready %v, error %v", ok, err)
		}
		w.prepare(p, i, true)
	}
	if n := w.Fallbacks()[BadLabels].Count; n != 2 || w.Stats().Pulls != 1 {
		t.Errorf("%d fallbacks, want 2; %+v", n, w.Stats())
	}
}
