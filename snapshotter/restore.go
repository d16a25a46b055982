package snapshotter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/lazy"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/remote"
)

// source is where the layer of an instance is.
type source struct {
	Namespace string             `json:"namespace"`
	Layer     ocispec.Descriptor `json:"layer"`
	// Image is a reference to an image in whose repository the layer is, if it may be fetched from there.
	Image string `json:"image,omitempty"`
	// DiffID is what the image's configuration says of the layer, if the instance is lazy.
	DiffID digest.Digest `json:"diffID,omitempty"`
}

// makes says whether the instance that is made from the layer has this id, and whether that is a lazy one.
func (from source) makes(id layerstore.ID) (ok, isLazy bool) {
	if from.Layer.Digest == "" {
		return false, false
	}
	isLazy = layerstore.LazyID(from.Layer.Digest, from.Layer.Annotations) == id
	return isLazy || layerstore.EagerID(from.Layer.Digest) == id, isLazy
}

// sourceOf is the zero source for the zero descriptor.
func sourceOf(ctx context.Context, layer ocispec.Descriptor, image string, diffID digest.Digest) (source, error) {
	if layer.Digest == "" {
		return source{}, nil
	}
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return source{}, err
	}
	layer = ocispec.Descriptor{
		MediaType: layer.MediaType, Digest: layer.Digest, Size: layer.Size, Annotations: lazy.IndexAnnotations(layer.Annotations),
	}
	return source{namespace, layer, image, diffID}, nil
}

// putSource keeps where the layer of an instance is. A registry that was known stays known: the content store may lose the layer.
func (r *records) putSource(id layerstore.ID, from source) error {
	if from.Layer.Digest == "" {
		return nil
	}
	if known, ok := r.source(id); ok && from.Image == "" {
		from.Image = known.Image
	}
	b, err := json.Marshal(from)
	if err != nil {
		return err
	}
	return r.sources.Put(instanceKey(id), b)
}

// source returns where the layer of an instance is, and whether that is known.
func (r *records) source(id layerstore.ID) (source, bool) {
	var from source
	b := r.sources.Get(instanceKey(id))
	if b == nil || json.Unmarshal(b, &from) != nil {
		return from, false
	}
	ok, _ := from.makes(id)
	return from, ok
}

// restore makes instances again that the snapshot called key consists of or lies on and that the layer store does not have: before it is
// mounted, or one is made on it. They were damaged, or not synced when the machine went down. An instance whose layer is not known is
// no error here: who asks finds it missing.
func (s *Snapshotter) restore(ctx context.Context, key string) error {
	missing := map[layerstore.ID]source{}
	err := s.view(ctx, func(ctx context.Context, r *records) error {
		for key != "" {
			id, info, _, err := storage.GetInfo(ctx, key)
			if err != nil {
				return nil // who asks finds out as well
			}
			number, err := parseSnapshotID(id)
			if err != nil {
				return err
			}
			if rec, err := r.get(number); err == nil {
				for id := range rec.refs() {
					s.addMissing(missing, r, id)
				}
			}
			key = info.Parent
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.makeAllAgain(ctx, missing)
}

// restoreAfter is how long layers that could not be made again are left alone: containerd may not have started yet.
const restoreAfter = 10 * time.Second

// restoreAll makes all instances again that snapshots miss, and returns when to try again. It goes on when a request for one of them
// gives up.
func (s *Snapshotter) restoreAll(ctx context.Context) (next time.Duration, err error) {
	missing := map[layerstore.ID]source{}
	err = s.view(ctx, func(_ context.Context, r *records) error {
		for _, id := range r.mountNumbers() {
			if r.referenced(id) {
				s.addMissing(missing, r, id)
			}
		}
		return nil
	})
	if err == nil {
		err = errors.Join(s.makeAllAgain(remote.Background(ctx), missing), s.replaceMismatched(remote.Background(ctx)))
	}
	if err != nil {
		return restoreAfter, err
	}
	return time.Hour, nil
}

func (s *Snapshotter) addMissing(missing map[layerstore.ID]source, r *records, id layerstore.ID) {
	if _, err := s.layers.Get(id); err == nil {
		return
	}
	if from, ok := r.source(id); ok {
		missing[id] = from
	}
}

func (s *Snapshotter) makeAllAgain(ctx context.Context, missing map[layerstore.ID]source) error {
	var errs []error
	for id, from := range missing {
		if err := s.makeAgain(ctx, id, from); err != nil {
			errs = append(errs, fmt.Errorf("lost layer %s not made again: %w\n  if this stays so, remove the images with it and pull them again", from.Layer.Digest, err))
			continue
		}
		s.log.Info("lost layer made again", "instance", id, "layer", from.Layer.Digest)
	}
	return errors.Join(errs...)
}

// makeAgain may run for one instance many times at once: they share one conversion.
func (s *Snapshotter) makeAgain(ctx context.Context, id layerstore.ID, from source) error {
	if _, isLazy := from.makes(id); isLazy {
		return s.makeLazyAgain(ctx, from)
	}
	inst, pin, err := s.layers.Import(ctx, from.Layer.Digest, func(ctx context.Context) (io.ReadCloser, error) {
		return s.openAgain(ctx, from)
	})
	if err != nil {
		return err
	}
	// The snapshots that miss it refer to it.
	pin.Release()
	if inst.ID != id {
		return fmt.Errorf("it is another instance now, %s", inst.ID)
	}
	return nil
}

// makeLazyAgain makes an instance again that was made from an index.
func (s *Snapshotter) makeLazyAgain(ctx context.Context, from source) error {
	if s.lazy == nil {
		return errors.New("it was loaded on demand, which is off now")
	}
	_, pin, err := s.lazy.Again(ctx, s.layers, from.Image, from.Layer, from.DiffID)
	pin.Release()
	return err
}

// openAgain looks in the namespace that brought the layer last, in that of the request, for another one may have it still, and in the
// registry that it came from.
func (s *Snapshotter) openAgain(ctx context.Context, from source) (io.ReadCloser, error) {
	if other, ok := namespaces.Namespace(ctx); ok && other != from.Namespace {
		if blob, err := s.remote.Open(ctx, "", from.Layer); err == nil {
			return blob, nil
		}
	}
	return s.remote.Open(namespaces.WithNamespace(ctx, from.Namespace), from.Image, from.Layer)
}

// lost unmounts an instance that turned out damaged while in use. Snapshots that are mounted from now on get it made again; containers
// that run keep what they have mounted.
func (s *Snapshotter) lost(id layerstore.ID) {
	ctx := context.Background() // of no request: the disk failed
	var n uint64
	var ok bool
	err := s.view(ctx, func(_ context.Context, r *records) error {
		n, ok = r.mountNumber(id)
		return nil
	})
	if err == nil && ok {
		err = s.unmountLayer(ctx, n)
	}
	if err != nil {
		s.log.Error("damaged layer instance not unmounted: new containers may read from it", "instance", id, "cause", err)
	}
	wake(s.wakeRestore)
	wake(s.wakeDelete)
}
