package lazytorture

import (
	"context"
	"math/rand/v2"
	"net/http"
	"os"
	"path"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/faultproxy"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/netproxy"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand"
	client "github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/lazy"
)

// newSource returns where the bytes of layers come from.
func newSource(o lifeOptions) (func(layerstore.Instance) ondemand.Source, error) {
	if o.Registry != "" {
		from := client.New(client.Options{StallTimeout: stall, PlainHTTP: func(string) bool { return true }})
		return func(inst layerstore.Instance) ondemand.Source {
			return registrySource{from, o.Registry + "/layers:1", lazy.Descriptor(inst)}
		}, nil
	}
	blobs := map[string]*os.File{}
	for digest, path := range o.Blobs {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		blobs[digest] = f
	}
	return func(inst layerstore.Instance) ondemand.Source { return fileSource{blobs[inst.Layer.String()], o.Delay} }, nil
}

// fileSource reads a layer's blob from a file, and takes its time.
type fileSource struct {
	blob  *os.File
	delay bool
}

const (
	// sourceLatency is the longest latency of a request, sourceRate the bytes/s of each.
	sourceLatency = 8 * time.Millisecond
	sourceRate    = 32 << 20
)

func (s fileSource) ReadAt(ctx context.Context, p []byte, off int64, _ int, _ func(int)) error {
	if s.delay {
		select {
		case <-time.After(rand.N(sourceLatency) + time.Duration(len(p))*time.Second/sourceRate):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	_, err := s.blob.ReadAt(p, off)
	return err
}

// registrySource reads a layer's blob from a registry, as the daemon does.
type registrySource struct {
	client *client.Client
	image  string
	layer  ocispec.Descriptor
}

func (s registrySource) ReadAt(ctx context.Context, p []byte, off int64, attempt int, came func(int)) error {
	return s.client.ReadInto(client.Again(ctx, attempt), s.image, s.layer, p, off, came)
}

// registry has the blobs of layers, and a proxy with faults before it.
type registry struct {
	proxy *faultproxy.Proxy
	calm  atomic.Bool // there are no faults
}

const (
	// stall is after how much silence a request is tried again. What stalls does so for longer.
	stall = 500 * time.Millisecond
	// faultShare is of how many requests one meets a fault.
	faultShare = 0.3
)

// passing are the faults after which the same request may succeed. After any other one an error is right at once.
var passing = []faultproxy.Kind{
	faultproxy.ClosedOnAccept, faultproxy.ResetBeforeHeaders, faultproxy.ResetAfterHeaders, faultproxy.ResetInBody, faultproxy.ClosedInBody,
	faultproxy.StallBeforeHeaders, faultproxy.StallInBody, faultproxy.Trickle, faultproxy.Status500, faultproxy.Status502,
	faultproxy.Status503, faultproxy.Status504, faultproxy.Status408, faultproxy.FlippedByte,
}

func newRegistry(t *testing.T, layers []layer) *registry {
	t.Helper()
	blobs := map[string]string{}
	for _, l := range layers {
		blobs[l.Digest.String()] = l.path
	}
	server, err := netproxy.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if blob, ok := blobs[path.Base(r.URL.Path)]; ok {
			http.ServeFile(w, r, blob)
			return
		}
		http.NotFound(w, r)
	}), netproxy.ServerOptions{})
	must(t, err)
	t.Cleanup(func() { server.Close() })
	r := &registry{}
	r.proxy, err = faultproxy.New(server.URL(), faultproxy.Options{
		Seed: 5, Probability: faultShare, Kinds: passing, Stall: 3 * stall,
		Match: func(req *http.Request) bool { return !r.calm.Load() && req.Method == http.MethodGet },
	})
	must(t, err)
	t.Cleanup(func() { r.proxy.Close() })
	return r
}

func (r *registry) addr() string { return r.proxy.Addr() }
