package lazy

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// ErrMismatch says that a layer is not what its image says: its tar is another one than the configuration's, or the index tells something
// else than the tar.
var ErrMismatch = errors.New("the layer is not what its image says")

// Descriptor describes the layer of a lazy instance.
func Descriptor(inst layerstore.Instance) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: inst.Lazy.MediaType, Digest: inst.Layer, Size: inst.Lazy.Size, Annotations: inst.Lazy.Annotations}
}

// Check reads the whole layer of an instance and compares it with its digest, its diffID and the index that the instance was made from. Each
// extent's bytes go to put when they have been compared with their digest, so that a check also completes the instance. wait is called before
// each piece is read. The error is ErrMismatch only if the layer's digest was right: otherwise what came over the network was wrong.
func (l *Loader) Check(ctx context.Context, inst layerstore.Instance, limits converter.Limits, wait func(context.Context, int) error,
	put func(int, []byte) error,
) (converter.Sums, error) {
	sums, err := l.checkFrom(ctx, inst, limits, wait, put)
	if err != nil {
		return converter.Sums{}, fmt.Errorf("check layer %s: %w", inst.Layer, err)
	}
	return sums, nil
}

func (l *Loader) checkFrom(ctx context.Context, inst layerstore.Instance, limits converter.Limits, wait func(context.Context, int) error,
	put func(int, []byte) error,
) (sums converter.Sums, err error) {
	layer := Descriptor(inst)
	err = errors.New("it is not known where it can be fetched from")
	for _, image := range inst.Lazy.Images { // the first that has it
		var whole io.ReadCloser
		if whole, err = l.o.Registry.Open(ctx, image, layer); err != nil {
			continue
		}
		sums, err = l.compare(ctx, &pacedReader{ctx: ctx, in: whole, wait: wait}, image, inst, limits, put)
		return sums, errors.Join(err, whole.Close())
	}
	return sums, err
}

func (l *Loader) compare(ctx context.Context, whole *pacedReader, image string, inst layerstore.Instance, limits converter.Limits,
	put func(int, []byte) error,
) (converter.Sums, error) {
	idx, err := l.openIndex(ctx, image, Descriptor(inst))
	if err != nil {
		return converter.Sums{}, err
	}
	if idx.Digest != inst.Lazy.Index {
		return converter.Sums{}, fmt.Errorf("its index is %s now, was %s", idx.Digest, inst.Lazy.Index)
	}
	hash := sha256.New()
	sums, err := converter.CheckTar(ctx, io.TeeReader(whole, hash), idx, limits, put)
	if errors.Is(err, converter.ErrMismatch) {
		// The bytes may be wrong, not the layer: only its digest tells.
		if _, rest := io.Copy(hash, whole); rest != nil {
			return converter.Sums{}, rest
		}
		if got := digest.NewDigest(digest.SHA256, hash); got == inst.Layer {
			return converter.Sums{}, fmt.Errorf("%w: %w", ErrMismatch, err)
		}
		return converter.Sums{}, fmt.Errorf("%w: %w", layerstore.ErrDigest, err)
	}
	switch {
	case err != nil:
		return converter.Sums{}, err
	case sums.Blob != inst.Layer:
		return converter.Sums{}, fmt.Errorf("%w: got %s", layerstore.ErrDigest, sums.Blob)
	case sums.DiffID != inst.Lazy.DiffID:
		return converter.Sums{}, fmt.Errorf("%w: its diffID is %s, the image's configuration says %s", ErrMismatch, sums.DiffID, inst.Lazy.DiffID)
	}
	return sums, nil
}

// pacedReader waits before it reads.
type pacedReader struct {
	ctx  context.Context
	in   io.Reader
	wait func(context.Context, int) error
}

// paceBytes is how much is read after one wait.
const paceBytes = 256 << 10

func (r *pacedReader) Read(p []byte) (int, error) {
	p = p[:min(len(p), paceBytes)]
	if err := r.wait(r.ctx, len(p)); err != nil {
		return 0, err
	}
	return r.in.Read(p)
}
