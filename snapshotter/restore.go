package snapshotter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// Content is where layers are that were converted once.
type Content interface {
	// Open returns a layer's blob. The namespace is in ctx, which bounds the reading, too.
	Open(ctx context.Context, layer ocispec.Descriptor) (io.ReadCloser, error)
}

// source is where the layer of an instance is.
type source struct {
	Namespace string             `json:"namespace"`
	Layer     ocispec.Descriptor `json:"layer"`
}

// sourceOf is the zero source for the zero descriptor.
func sourceOf(ctx context.Context, layer ocispec.Descriptor) (source, error) {
	if layer.Digest == "" {
		return source{}, nil
	}
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return source{}, err
	}
	return source{namespace, ocispec.Descriptor{MediaType: layer.MediaType, Digest: layer.Digest, Size: layer.Size}}, nil
}

func (r *records) putSource(id layerstore.ID, from source) error {
	if from.Layer.Digest == "" {
		return nil
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
	return from, b != nil && json.Unmarshal(b, &from) == nil && layerstore.EagerID(from.Layer.Digest) == id
}

// lostLayers are instances that snapshots refer to and the layer store does not have, but that can be made again: they were damaged, or
// not synced when the machine went down.
type lostLayers struct {
	mu   sync.Mutex // held while one is made
	from map[layerstore.ID]source
}

// add is for the start.
func (l *lostLayers) add(id layerstore.ID, from source) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.from[id] = from
}

// restore makes lost instances again, if there are any: before a snapshot is made or mounted, because what it consists of must be there.
// They are few, so that nobody asks whether this snapshot is one that needs them. What cannot be made stays lost, and is missed by the
// snapshots that need it.
func (s *Snapshotter) restore(ctx context.Context) {
	s.lost.mu.Lock()
	defer s.lost.mu.Unlock()
	for id, from := range maps.Clone(s.lost.from) {
		if ctx.Err() != nil {
			return
		}
		if err := s.makeAgain(ctx, id, from); err != nil {
			s.log.Error("lost layer not made again: snapshots with it cannot be mounted; remove their image and pull it again, if this stays so",
				"instance", id, "layer", from.Layer.Digest, "cause", err)
			continue
		}
		delete(s.lost.from, id)
		s.log.Info("lost layer made again", "instance", id, "layer", from.Layer.Digest)
	}
}

func (s *Snapshotter) makeAgain(ctx context.Context, id layerstore.ID, from source) error {
	if s.content == nil {
		return errors.New("no content store is known")
	}
	inst, pin, err := s.layers.Import(ctx, from.Layer.Digest, func(ctx context.Context) (io.ReadCloser, error) {
		return s.content.Open(namespaces.WithNamespace(ctx, from.Namespace), from.Layer)
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
