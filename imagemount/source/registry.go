package source

import (
	"context"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry is a client for images in registries. Image is a full reference with a tag or a digest.
type Registry interface {
	Resolve(ctx context.Context, image string) (ocispec.Descriptor, error)
	// Document returns an index, a manifest or a config, and refuses one that is too long.
	Document(ctx context.Context, image string, desc ocispec.Descriptor) ([]byte, error)
	Open(ctx context.Context, image string, desc ocispec.Descriptor) (io.ReadCloser, error)
}

// registryImage is one image of a registry.
type registryImage struct {
	registry Registry
	image    string
}

var _ Source = (*registryImage)(nil)

func (r *registryImage) Resolve(ctx context.Context) ([]ocispec.Descriptor, error) {
	desc, err := r.registry.Resolve(ctx, r.image)
	if err != nil {
		return nil, err
	}
	return []ocispec.Descriptor{desc}, nil
}

func (r *registryImage) Document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	return r.registry.Document(ctx, r.image, desc)
}

func (r *registryImage) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	return r.registry.Open(ctx, r.image, desc)
}

func (r *registryImage) Close() error { return nil }
