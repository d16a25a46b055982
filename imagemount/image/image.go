// Package image finds out which layers an image has: from what a name stands for, through indexes, to the manifest and the config of
// one platform.
//
// Every document is checked against the digest and length that led to it before it is parsed, so an Image is as trustworthy as the
// descriptors that a source began with. All documents may be hostile: their number, depth and length are bounded.
//
// The package reads documents only. That layers are what the manifest and the config promise is found out when they are converted.
package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

const (
	// maxDepth is how many indexes may lie in each other. One is usual, two occur in layouts.
	maxDepth = 4
	// maxDocuments bounds how many documents one name may lead to.
	maxDocuments = 256
	// maxLayers is what overlayfs takes as lower layers (OVL_MAX_STACK).
	maxLayers = 500
)

// Image is what can be mounted.
type Image struct {
	// Manifest names the image of one platform.
	Manifest digest.Digest
	// Platform is as the config says, "linux/arm64".
	Platform string
	// Layers, lowest first.
	Layers []Layer
}

// Layer is one layer of an image.
type Layer struct {
	// Blob is what the manifest says: media type, digest and length of the blob.
	Blob ocispec.Descriptor
	// DiffID is the digest of the uncompressed tar, as the config promises. Chain is the chain ID of this layer and those below it.
	DiffID, Chain digest.Digest
}

// Documents is where documents are, see source.Source.
type Documents interface {
	Resolve(ctx context.Context) ([]ocispec.Descriptor, error)
	Document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
}

// Resolve returns the image for the platform.
func Resolve(ctx context.Context, docs Documents, platform ocispec.Platform) (Image, error) {
	found, err := docs.Resolve(ctx)
	if err != nil {
		return Image{}, err
	}
	s := search{docs: docs, want: platforms.OnlyStrict(platform)}
	img, err := s.among(ctx, found, 0)
	if err != nil {
		return Image{}, err
	}
	if img == nil {
		return Image{}, fmt.Errorf("there is no image for %s\n  there is: %s (choose with --platform)", platforms.Format(platform), s.others())
	}
	return *img, nil
}

// search looks for the image of one platform.
type search struct {
	docs Documents
	want platforms.Matcher
	read int      // documents read
	have []string // platforms found that are others
}

func (s *search) others() string {
	if len(s.have) == 0 {
		return "none that can be mounted"
	}
	slices.Sort(s.have)
	return strings.Join(slices.Compact(s.have), ", ")
}

// among returns nil if there is none. The first of several counts: an index lists its preferred one first.
func (s *search) among(ctx context.Context, descs []ocispec.Descriptor, depth int) (*Image, error) {
	for _, desc := range descs {
		img, err := s.at(ctx, desc, depth)
		if err != nil || img != nil {
			return img, err
		}
	}
	return nil, nil
}

func (s *search) at(ctx context.Context, desc ocispec.Descriptor, depth int) (*Image, error) {
	switch {
	case images.IsIndexType(desc.MediaType):
		if depth == maxDepth {
			return nil, fmt.Errorf("index %s: more than %d indexes lie in each other", desc.Digest, maxDepth)
		}
		inner, err := s.index(ctx, desc)
		if err != nil {
			return nil, fmt.Errorf("index %s: %w", desc.Digest, err)
		}
		return s.among(ctx, inner, depth+1)
	case images.IsManifestType(desc.MediaType):
		if desc.Platform != nil && !s.want.Match(*desc.Platform) {
			// Attestations stand in indexes as images for no platform.
			if desc.Platform.OS != "unknown" {
				s.have = append(s.have, platforms.Format(*desc.Platform))
			}
			return nil, nil
		}
		img, err := s.manifest(ctx, desc)
		if err != nil {
			return nil, fmt.Errorf("manifest %s: %w", desc.Digest, err)
		}
		return img, nil
	case depth == 0:
		return nil, fmt.Errorf("%s has media type %q, which is no image", desc.Digest, desc.MediaType)
	}
	return nil, nil // something else that an index lists
}

func (s *search) index(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	var index struct {
		documentType
		Manifests []ocispec.Descriptor `json:"manifests"`
		Layers    json.RawMessage      `json:"layers"`
	}
	if err := s.document(ctx, desc, &index); err != nil {
		return nil, err
	}
	if err := index.check(desc, index.Layers); err != nil {
		return nil, err
	}
	return index.Manifests, nil
}

// manifest returns nil if the image is for another platform, which only the config of one without a platform in its index tells.
func (s *search) manifest(ctx context.Context, desc ocispec.Descriptor) (*Image, error) {
	var m struct {
		documentType
		Config    ocispec.Descriptor   `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
		Manifests json.RawMessage      `json:"manifests"`
	}
	if err := s.document(ctx, desc, &m); err != nil {
		return nil, err
	}
	if err := m.check(desc, m.Manifests); err != nil {
		return nil, err
	}
	if !images.IsConfigType(m.Config.MediaType) {
		return nil, fmt.Errorf("its config has media type %q: this is an artifact, not an image", m.Config.MediaType)
	}
	var config ocispec.Image
	if err := s.document(ctx, m.Config, &config); err != nil {
		return nil, fmt.Errorf("config %s: %w", m.Config.Digest, err)
	}
	if (config.OS != "" || config.Architecture != "") && !s.want.Match(config.Platform) {
		s.have = append(s.have, platforms.Format(config.Platform))
		return nil, nil
	}
	layers, err := layersOf(m.Layers, config.RootFS)
	if err != nil {
		return nil, err
	}
	return &Image{Manifest: desc.Digest, Platform: platforms.Format(config.Platform), Layers: layers}, nil
}

// layersOf joins what the manifest and the config say about layers.
func layersOf(blobs []ocispec.Descriptor, rootfs ocispec.RootFS) ([]Layer, error) {
	switch {
	case len(blobs) != len(rootfs.DiffIDs):
		return nil, fmt.Errorf("it has %d layers, its config promises %d", len(blobs), len(rootfs.DiffIDs))
	case len(blobs) > maxLayers:
		return nil, fmt.Errorf("it has %d layers, at most %d can be mounted", len(blobs), maxLayers)
	case rootfs.Type != "layers" && len(blobs) > 0:
		return nil, fmt.Errorf("its config has a root filesystem of type %q, only \"layers\" is known", rootfs.Type)
	}
	for i, blob := range blobs {
		err := checkLayer(blob)
		if err == nil {
			err = checkDigest(rootfs.DiffIDs[i])
		}
		if err != nil {
			return nil, fmt.Errorf("layer %d of %d, %s: %w", i+1, len(blobs), blob.Digest, err)
		}
	}
	chains := identity.ChainIDs(slices.Clone(rootfs.DiffIDs))
	layers := make([]Layer, len(blobs))
	for i := range layers {
		layers[i] = Layer{Blob: blobs[i], DiffID: rootfs.DiffIDs[i], Chain: chains[i]}
	}
	return layers, nil
}

// checkLayer refuses what the converter cannot read. What the stream is compressed with, if at all, the converter sees for itself.
func checkLayer(blob ocispec.Descriptor) error {
	if err := checkDigest(blob.Digest); err != nil {
		return err
	}
	if blob.Size < 0 {
		return fmt.Errorf("its length is %d", blob.Size)
	}
	if layerstore.Importable(blob.MediaType) {
		return nil
	}
	return fmt.Errorf("media type %q: only tar layers, plain or with gzip or zstd, can be mounted", blob.MediaType)
}

func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %s: only sha256 can be checked", d)
	}
	return nil
}

// document reads what desc names into v.
func (s *search) document(ctx context.Context, desc ocispec.Descriptor, v any) error {
	if err := checkDigest(desc.Digest); err != nil {
		return err
	}
	if s.read++; s.read > maxDocuments {
		return fmt.Errorf("the name leads to more than %d documents", maxDocuments)
	}
	b, err := s.docs.Document(ctx, desc)
	if err != nil {
		return err
	}
	if got := digest.FromBytes(b); got != desc.Digest || int64(len(b)) != desc.Size {
		return fmt.Errorf("digest mismatch: want %d bytes with %s, got %d with %s", desc.Size, desc.Digest, len(b), got)
	}
	return json.Unmarshal(b, v)
}

// documentType is what a document says about itself.
type documentType struct {
	MediaType string `json:"mediaType"`
}

// check refuses a document that could be read as another type than its descriptor says: two readers would see two images.
func (t documentType) check(desc ocispec.Descriptor, foreign json.RawMessage) error {
	if t.MediaType != "" && t.MediaType != desc.MediaType {
		return fmt.Errorf("it says its media type is %q, the descriptor says %q", t.MediaType, desc.MediaType)
	}
	if foreign != nil {
		return errors.New("it is a manifest and an index at once")
	}
	return nil
}
