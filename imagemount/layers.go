package imagemount

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount/image"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// Progress is told how layers are fetched. Read and Done are called by many goroutines.
type Progress interface {
	// Begin says which blobs are going to be fetched, of an image with so many layers. The others are there already.
	Begin(fetch []ocispec.Descriptor, layers int)
	// Read says that n more bytes of a blob were read.
	Read(blob digest.Digest, n int)
	// Done says that a blob is converted and verified, perhaps one that was there already.
	Done(blob digest.Digest)
}

// blobs is where layers are.
type blobs interface {
	Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
}

// provide makes the committed snapshots of an image, and returns the chain ID of the topmost and how many layers were fetched. The reference is
// that of an image in a registry, otherwise empty.
func (r *Root) provide(ctx context.Context, img image.Image, reference string, from blobs, progress Progress) (top string, fetched int, err error) {
	missing, err := r.missing(ctx, img)
	if err != nil {
		return "", 0, err
	}
	fetch := r.toFetch(missing)
	progress.Begin(fetch, len(img.Layers))
	made, err := r.importAll(ctx, missing, reference, from, progress)
	defer func() {
		for _, one := range made {
			one.pin.Release()
		}
	}()
	if err != nil {
		return "", 0, err
	}
	instances := map[digest.Digest]layerstore.ID{}
	for i, one := range made {
		instances[missing[i].Blob.Digest] = one.id
	}
	for i, l := range img.Layers {
		if err := r.commit(ctx, l, cmp.Or(instances[l.Blob.Digest], layerstore.EagerID(l.Blob.Digest)), top); err != nil {
			return "", 0, fmt.Errorf("layer %d of %d, %s: %w", i+1, len(img.Layers), l.Blob.Digest, err)
		}
		top = l.Chain.String()
	}
	return top, len(fetch), nil
}

// numbered is a layer with its place in the image, for messages.
type numbered struct {
	image.Layer
	n, of int
}

// missing returns the layers that have to be fetched. The content of a layer whose chain ID is there was verified when it was committed;
// that of one whose files were lost is made again under its id.
func (r *Root) missing(ctx context.Context, img image.Image) ([]numbered, error) {
	var missing []numbered
	for i, l := range img.Layers {
		info, err := r.sn.Stat(ctx, l.Chain.String())
		if err == nil {
			_, err = r.sn.Layers().Get(instanceOf(info.Labels))
		}
		if errdefs.IsNotFound(err) {
			missing = append(missing, numbered{l, i + 1, len(img.Layers)})
		} else if err != nil {
			return nil, err
		}
	}
	return missing, nil
}

// instanceOf is the id of the instance of a layer's snapshot.
func instanceOf(labels map[string]string) layerstore.ID {
	return cmp.Or(layerstore.ID(labels[labelInstance]), layerstore.EagerID(digest.Digest(labels[labelLayer])))
}

// toFetch returns the different blobs that are in no instance: an image may have a layer twice, and one that no mount needed until now is
// there until Close.
func (r *Root) toFetch(layers []numbered) []ocispec.Descriptor {
	var all []ocispec.Descriptor
	seen := map[digest.Digest]bool{}
	for _, l := range layers {
		if !seen[l.Blob.Digest] && !r.sn.Layers().Known(l.Blob.Digest) {
			seen[l.Blob.Digest] = true
			all = append(all, l.Blob)
		}
	}
	return all
}

// imported is the instance of a layer, pinned.
type imported struct {
	id  layerstore.ID
	pin layerstore.Pin
}

// importAll makes the instances of layers, in parallel as the layer store allows. The pins are to be released also after an error. The
// first layer that fails ends the others.
func (r *Root) importAll(ctx context.Context, layers []numbered, reference string, from blobs, progress Progress) ([]imported, error) {
	made := make([]imported, len(layers))
	group, ctx := errgroup.WithContext(ctx)
	for i, l := range layers {
		group.Go(func() (err error) {
			if made[i], err = r.importOne(ctx, l.Layer, reference, from, progress); err != nil {
				return fmt.Errorf("layer %d of %d: %w", l.n, l.of, err)
			}
			progress.Done(l.Blob.Digest)
			r.log.Debug("layer imported", "layer", l.Blob.Digest)
			return nil
		})
	}
	err := group.Wait()
	return made, err
}

func (r *Root) importOne(ctx context.Context, l image.Layer, reference string, from blobs, progress Progress) (imported, error) {
	if r.lazy != nil && reference != "" {
		inst, pin, ok, err := r.lazy.Layer(ctx, r.sn.Layers(), reference, l.Blob, l.DiffID)
		if ok || err != nil {
			return imported{inst.ID, pin}, err
		}
	}
	inst, pin, err := r.sn.Layers().Import(ctx, l.Blob.Digest, func(ctx context.Context) (io.ReadCloser, error) {
		blob, err := from.Open(ctx, l.Blob)
		if err != nil {
			return nil, err
		}
		return &counted{ReadCloser: blob, blob: l.Blob.Digest, progress: progress}, nil
	})
	if err != nil {
		return imported{}, err
	}
	if inst.DiffID != l.DiffID {
		return imported{inst.ID, pin}, fmt.Errorf("layer %s: the image lies: its config promises the diffID %s, the layer has %s",
			l.Blob.Digest, l.DiffID, inst.DiffID)
	}
	return imported{inst.ID, pin}, nil
}

// counted is a blob whose bytes are reported as they are read.
type counted struct {
	io.ReadCloser
	blob     digest.Digest
	progress Progress
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if n > 0 {
		c.progress.Read(c.blob, n)
	}
	return n, err
}

// commit makes the snapshot of a layer on the one below it, unless it is there. The layer's instance is pinned.
func (r *Root) commit(ctx context.Context, l image.Layer, instance layerstore.ID, parent string) (err error) {
	chain := l.Chain.String()
	if _, err := r.sn.Stat(ctx, chain); !errdefs.IsNotFound(err) {
		return err
	}
	key := importPrefix + chain
	mounts, err := r.sn.Prepare(ctx, key, parent)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.sn.Remove(context.WithoutCancel(ctx), key))
		}
	}()
	if err := r.bind(ctx, mounts, instance); err != nil {
		return err
	}
	if err := r.sn.Commit(ctx, chain, key, snapshots.WithLabels(map[string]string{
		labelLayer: l.Blob.Digest.String(), labelInstance: string(instance),
	})); err != nil {
		return err
	}
	r.log.Debug("layer committed", "chain", chain)
	return nil
}

// bind gives an active snapshot the instance of a layer. Where the layer came from is not recorded: the image can be mounted again.
func (r *Root) bind(ctx context.Context, mounts []mount.Mount, instance layerstore.ID) error {
	id, ok := r.sn.ActiveSnapshot(ctx, mounts)
	if !ok {
		return fmt.Errorf("the snapshot just prepared is not active: %w", errdefs.ErrFailedPrecondition)
	}
	return r.sn.Bind(ctx, id, instance, ocispec.Descriptor{})
}

// diskBytes is what the layers on and below a committed snapshot take on disk.
func (r *Root) diskBytes(ctx context.Context, top string) (int64, error) {
	var sum int64
	seen := map[layerstore.ID]bool{}
	for top != "" {
		info, err := r.sn.Stat(ctx, top)
		if err != nil {
			return 0, err
		}
		id := instanceOf(info.Labels)
		inst, err := r.sn.Layers().Get(id)
		if err != nil {
			return 0, err
		}
		if !seen[id] {
			sum += inst.DiskBytes
		}
		seen[id], top = true, info.Parent
	}
	return sum, nil
}
