package content

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layerLabel is what containerd writes to the blob of a manifest for each layer of the image, with its number behind it, to keep the
// layers from its garbage collection (images.ChildGCLabels). Manifests have it before their layers are fetched.
const layerLabel = "containerd.io/gc.ref.content.l."

// maxManifestBytes is the largest manifest that is read: four times what registries accept.
const maxManifestBytes = 16 << 20

// Above returns the layers of an image above one of its layers, lowest first: of the image in the namespace of ctx that was changed
// last, if several have that layer. None is no error: containerd may keep manifests without labels, or the layer may be the last.
func (s *Store) Above(ctx context.Context, layer digest.Digest) ([]ocispec.Descriptor, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.stall, errStalled)
	defer cancel()
	var manifest content.Info
	err := s.blobs.Walk(ctx, func(info content.Info) error {
		if hasLayer(info, layer) && info.UpdatedAt.After(manifest.UpdatedAt) {
			manifest = info
		}
		return nil
	}, `labels."`+layerLabel+`0"`)
	if err != nil {
		return nil, fmt.Errorf("find the image of layer %s in containerd's content store: %w", layer, err)
	}
	if manifest.Digest == "" {
		return nil, nil
	}
	above, err := s.layersAbove(ctx, manifest, layer)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s of layer %s: %w", manifest.Digest, layer, err)
	}
	return above, nil
}

func hasLayer(info content.Info, layer digest.Digest) bool {
	for key, value := range info.Labels {
		if strings.HasPrefix(key, layerLabel) && value == layer.String() {
			return true
		}
	}
	return false
}

func (s *Store) layersAbove(ctx context.Context, info content.Info, layer digest.Digest) ([]ocispec.Descriptor, error) {
	b, err := s.read(ctx, info)
	if err != nil {
		return nil, err
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(b, &manifest); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(manifest.Layers, func(l ocispec.Descriptor) bool { return l.Digest == layer })
	return manifest.Layers[i+1:], nil
}

// answerTime is how long containerd may take to find a blob, or to give out a manifest: it waits for us meanwhile, has it on its disk, and
// there may be another way.
const answerTime = 5 * time.Second

// Document returns a manifest or a configuration, whose digest was checked, and the labels that containerd keeps with it, from the namespace
// of ctx. The error is errdefs.ErrNotFound when it is not there.
func (s *Store) Document(ctx context.Context, name digest.Digest) ([]byte, map[string]string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, min(answerTime, s.stall), errStalled)
	defer cancel()
	b, labels, err := s.document(ctx, name)
	if errdefs.IsUnavailable(err) && s.reconnect(ctx) {
		b, labels, err = s.document(ctx, name)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read %s from containerd's content store: %w", name, err)
	}
	return b, labels, nil
}

func (s *Store) document(ctx context.Context, name digest.Digest) ([]byte, map[string]string, error) {
	if err := name.Validate(); err != nil {
		return nil, nil, err
	}
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, nil, err
	}
	ctx = namespaces.WithNamespace(ctx, namespace) // see Open
	info, err := s.blobs.Info(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	b, err := s.read(ctx, info)
	if err != nil {
		return nil, nil, err
	}
	if name.Algorithm().FromBytes(b) != name {
		return nil, nil, fmt.Errorf("its bytes have another digest: %w", errdefs.ErrDataLoss)
	}
	return b, info.Labels, nil
}

// read returns a blob that is not larger than a manifest may be.
func (s *Store) read(ctx context.Context, info content.Info) ([]byte, error) {
	if info.Size > maxManifestBytes {
		return nil, fmt.Errorf("it has %d bytes, more than %d", info.Size, maxManifestBytes)
	}
	return content.ReadBlob(ctx, s.blobs, ocispec.Descriptor{Digest: info.Digest, Size: info.Size})
}
