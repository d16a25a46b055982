package snapshotter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
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
	mu   sync.Mutex
	from map[layerstore.ID]source
}

func (l *lostLayers) add(id layerstore.ID, from source) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.from[id] = from
}

func (l *lostLayers) remove(id layerstore.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.from, id)
}

func (l *lostLayers) all() map[layerstore.ID]source {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.from)
}

// restore makes lost instances again that the snapshot called key consists of or lies on, if there are any: before it is mounted, or
// one is made on it. What cannot be made stays lost, and whoever asked finds it missing.
func (s *Snapshotter) restore(ctx context.Context, key string) {
	lost := s.lost.all()
	if len(lost) == 0 || key == "" {
		return
	}
	needed, err := s.instancesBelow(ctx, key)
	if err != nil {
		return // who asked finds out as well
	}
	for id := range needed {
		from, ok := lost[id]
		if !ok {
			continue
		}
		if err := s.makeAgain(ctx, id, from); err != nil {
			s.log.Error("lost layer not made again: if this stays so, remove the images with it and pull them again",
				"instance", id, "layer", from.Layer.Digest, "cause", err)
			continue
		}
		s.lost.remove(id)
		s.log.Info("lost layer made again", "instance", id, "layer", from.Layer.Digest)
	}
}

// instancesBelow returns what the snapshot called key and all its parents refer to.
func (s *Snapshotter) instancesBelow(ctx context.Context, key string) (map[layerstore.ID]byte, error) {
	all := map[layerstore.ID]byte{}
	err := s.view(ctx, func(ctx context.Context, r *records) error {
		for key != "" {
			id, info, _, err := storage.GetInfo(ctx, key)
			if err != nil {
				return err
			}
			number, err := parseSnapshotID(id)
			if err != nil {
				return err
			}
			rec, err := r.get(number)
			if err != nil {
				return err
			}
			maps.Copy(all, rec.refs())
			key = info.Parent
		}
		return nil
	})
	return all, err
}

// makeAgain may run for one instance many times at once: they share one conversion.
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
