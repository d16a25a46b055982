package differ

import (
	"context"
	"io"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// Images is a Source that knows which layers belong together.
type Images interface {
	// Above returns the layers above one of an image's, lowest first, in the namespace of ctx. The caller may change the slice.
	Above(ctx context.Context, layer digest.Digest) ([]ocispec.Descriptor, error)
}

const (
	// lookAgain is how often a layer that containerd is still fetching is looked for, with a request of 0.2 ms.
	lookAgain = 50 * time.Millisecond
	// fetchedAtOnce is how many layers are looked for each time: as many as containerd fetches at a time, unless told otherwise.
	fetchedAtOnce = 3
	// lookAhead is how many layers are waited for. Those further up are near when the next layer is applied.
	lookAhead = 16
)

// importAbove imports the layers above one that is being applied, because containerd asks for them one after the other: each as soon
// as it is in the content store and there is a place for it. It returns the layers above when all of them have begun, or when ctx ends with
// the request. What has begun goes on.
//
// Nothing here can fail a pull. What cannot be imported ahead is asked for by containerd in its turn.
func (d *Differ) importAbove(ctx context.Context, namespace string, layer digest.Digest) []ocispec.Descriptor {
	images, ok := d.source.(Images)
	if _, ever := d.layers.MayImportAhead(); !ok || !ever {
		return nil
	}
	ctx = namespaces.WithNamespace(ctx, namespace)
	above, err := images.Above(ctx, layer)
	if err != nil {
		return nil
	}
	// A manifest holds what a stranger wrote.
	above = slices.DeleteFunc(above[:min(len(above), lookAhead)], func(l ocispec.Descriptor) bool {
		return !layerstore.Importable(l.MediaType) || l.Digest.Validate() != nil
	})
	for waiting := slices.Clone(above); ; {
		waiting = slices.DeleteFunc(waiting, func(l ocispec.Descriptor) bool { return d.layers.Known(l.Digest) })
		if len(waiting) == 0 {
			return above
		}
		for _, l := range waiting[:min(len(waiting), fetchedAtOnce)] {
			open := func(ctx context.Context) (io.ReadCloser, error) { return d.source.Open(ctx, l) }
			if now, _ := d.layers.MayImportAhead(); now && d.fetched(ctx, l) {
				d.layers.ImportAhead(ctx, l.Digest, open)
			}
		}
		select {
		case <-ctx.Done():
			return above
		case <-time.After(lookAgain):
		}
	}
}

// fetched says whether containerd has a layer.
func (d *Differ) fetched(ctx context.Context, layer ocispec.Descriptor) bool {
	blob, err := d.source.Open(ctx, layer)
	if err != nil {
		return false
	}
	_ = blob.Close() // nothing was read
	return true
}
