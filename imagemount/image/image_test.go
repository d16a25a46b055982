package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount/internal/imagetest"
)

var (
	base  = imagetest.Tar(imagetest.File{Name: "base", Content: "1"})
	upper = imagetest.Tar(imagetest.File{Name: "upper", Content: "2"})

	amd64 = ocispec.Platform{OS: "linux", Architecture: "amd64"}
	arm64 = ocispec.Platform{OS: "linux", Architecture: "arm64"}
	armv7 = ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
)

// documents are blobs, and what the name stands for.
type documents struct {
	imagetest.Blobs
	found []ocispec.Descriptor
}

func (d documents) Resolve(context.Context) ([]ocispec.Descriptor, error) { return d.found, nil }

func (d documents) Document(_ context.Context, desc ocispec.Descriptor) ([]byte, error) {
	b, ok := d.Blobs[desc.Digest]
	if !ok {
		return nil, fmt.Errorf("%s is not there", desc.Digest)
	}
	return b, nil
}

// on gives a descriptor a platform, as an index does.
func on(desc ocispec.Descriptor, p ocispec.Platform) ocispec.Descriptor {
	desc.Platform = &p
	return desc
}

func TestResolve(t *testing.T) {
	blobs := imagetest.Blobs{}
	one := blobs.Image(base, upper)
	arm := blobs.ImageFor(arm64, base)
	seven := blobs.ImageFor(armv7, upper)
	attestation := on(blobs.Image(), ocispec.Platform{OS: "unknown", Architecture: "unknown"})
	index := blobs.Index(attestation, on(one, amd64), on(arm, arm64), seven)
	nested := blobs.Index(blobs.Index(index))
	for name, c := range map[string]struct {
		found    []ocispec.Descriptor
		platform ocispec.Platform
		want     digest.Digest
	}{
		"manifest":                    {[]ocispec.Descriptor{one}, amd64, one.Digest},
		"index":                       {[]ocispec.Descriptor{index}, arm64, arm.Digest},
		"variant":                     {[]ocispec.Descriptor{index}, ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}, arm.Digest},
		"platform only in the config": {[]ocispec.Descriptor{index}, armv7, seven.Digest},
		"nested":                      {[]ocispec.Descriptor{nested}, amd64, one.Digest},
		"two of one name":             {[]ocispec.Descriptor{one, arm}, arm64, arm.Digest},
	} {
		img, err := Resolve(t.Context(), documents{blobs, c.found}, c.platform)
		if err != nil || img.Manifest != c.want {
			t.Errorf("%s: got %s, %v, want %s", name, img.Manifest, err, c.want)
		}
	}
	img, err := Resolve(t.Context(), documents{blobs, []ocispec.Descriptor{index}}, amd64)
	if err != nil || len(img.Layers) != 2 || img.Platform != "linux/amd64" {
		t.Fatalf("%+v, %v", img, err)
	}
	diffIDs := []digest.Digest{digest.FromBytes(base), digest.FromBytes(upper)}
	top, blob := img.Layers[1], digest.FromBytes(imagetest.Gzip(upper))
	if top.DiffID != diffIDs[1] || top.Chain != identity.ChainID(diffIDs) || top.Blob.Digest != blob {
		t.Errorf("top layer %+v", top)
	}
	_, err = Resolve(t.Context(), documents{blobs, []ocispec.Descriptor{index}}, ocispec.Platform{OS: "linux", Architecture: "s390x"})
	if err == nil || !strings.Contains(err.Error(), "there is: linux/amd64, linux/arm/v7, linux/arm64") {
		t.Errorf("missing platform: %v", err)
	}
}

func TestLies(t *testing.T) {
	blobs := imagetest.Blobs{}
	good := blobs.Image(base)
	config := ocispec.Image{Platform: amd64, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(base)}}}
	layer := blobs.Add(ocispec.MediaTypeImageLayerGzip, imagetest.Gzip(base))
	typed := func(mediaType string) ocispec.Descriptor {
		l := layer
		l.MediaType = mediaType
		return blobs.Manifest(config, l)
	}
	weak := config
	weak.RootFS.DiffIDs = []digest.Digest{digest.SHA512.FromBytes(base)}
	other := config
	other.RootFS.Type = "other"
	deep := good
	for range maxDepth + 1 {
		deep = blobs.Index(deep)
	}
	wrongSize := good
	wrongSize.Size++
	changed := good
	changed.Digest = digest.FromString("other")
	blobs[changed.Digest] = blobs[good.Digest]
	mixed := blobs.AddJSON(ocispec.MediaTypeImageIndex, map[string]any{"manifests": []any{}, "layers": []any{}})
	asIndex := good
	asIndex.MediaType = ocispec.MediaTypeImageIndex
	artifact := blobs.AddJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{Config: blobs.Add(ocispec.MediaTypeEmptyJSON, []byte("{}"))})
	many := make([]ocispec.Descriptor, 400)
	for i := range many {
		many[i] = blobs.ImageFor(arm64, fmt.Append(nil, i))
	}
	for name, c := range map[string]struct {
		desc ocispec.Descriptor
		want string
	}{
		"length":              {wrongSize, "digest mismatch"},
		"digest":              {changed, "digest mismatch"},
		"two types":           {mixed, "manifest and an index"},
		"other type":          {asIndex, "the descriptor says"},
		"artifact":            {artifact, "artifact"},
		"no image":            {layer, "no image"},
		"fewer layers":        {blobs.Manifest(config), "0 layers, its config promises 1"},
		"more layers":         {blobs.Manifest(config, layer, layer), "2 layers"},
		"diffID":              {blobs.Manifest(weak, layer), "layer 1 of 1, " + layer.Digest.String() + ": digest sha512"},
		"rootfs":              {blobs.Manifest(other, layer), `type "other"`},
		"encrypted":           {typed(ocispec.MediaTypeImageLayerGzip + "+encrypted"), "media type"},
		"erofs":               {typed("application/vnd.erofs.layer.v1"), "media type"},
		"deep":                {deep, "indexes lie in each other"},
		"many":                {blobs.Index(many...), "more than 256 documents"},
		"unknown digest":      {ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: "x"}, `digest "x"`},
		"missing":             {ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("missing")}, "not there"},
		"nothing for anybody": {blobs.Index(), "none that can be mounted"},
	} {
		_, err := Resolve(t.Context(), documents{blobs, []ocispec.Descriptor{c.desc}}, amd64)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	for _, mediaType := range []string{
		ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd,
		images.MediaTypeDockerSchema2Layer, images.MediaTypeDockerSchema2LayerGzip,
	} {
		if _, err := Resolve(t.Context(), documents{blobs, []ocispec.Descriptor{typed(mediaType)}}, amd64); err != nil {
			t.Errorf("%s: %v", mediaType, err)
		}
	}
}

// One hostile document, which a manifest digest vouches for, must not give an image with layers that do not fit together.
func FuzzResolve(f *testing.F) {
	blobs := imagetest.Blobs{}
	blobs.Index(on(blobs.Image(base, upper), amd64))
	for _, b := range blobs {
		f.Add(b, true)
		f.Add(b, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, index bool) {
		all := imagetest.Blobs{}
		for d, content := range blobs {
			all[d] = content
		}
		mediaType := ocispec.MediaTypeImageManifest
		if index {
			mediaType = ocispec.MediaTypeImageIndex
		}
		for _, desc := range []ocispec.Descriptor{
			all.Add(mediaType, b),
			all.AddJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{Config: all.Add(ocispec.MediaTypeImageConfig, b), Layers: []ocispec.Descriptor{
				all.Add(ocispec.MediaTypeImageLayerGzip, imagetest.Gzip(base)),
			}}),
		} {
			img, err := Resolve(t.Context(), documents{all, []ocispec.Descriptor{desc}}, amd64)
			if err != nil {
				continue
			}
			var diffIDs []digest.Digest
			for _, l := range img.Layers {
				diffIDs = append(diffIDs, l.DiffID)
				if err := errors.Join(l.Blob.Digest.Validate(), l.DiffID.Validate()); err != nil {
					t.Error(err)
				}
				if l.Chain != identity.ChainID(slices.Clone(diffIDs)) {
					t.Errorf("chain of %v is %s", diffIDs, l.Chain)
				}
			}
		}
	})
}
