package content

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
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
	if info.Size > maxManifestBytes {
		return nil, fmt.Errorf("it has %d bytes, more than %d", info.Size, maxManifestBytes)
	}
	b, err := content.ReadBlob(ctx, s.blobs, ocispec.Descriptor{Digest: info.Digest, Size: info.Size})
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
