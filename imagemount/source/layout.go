package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	layoutFile = ocispec.ImageLayoutFile
	indexFile  = ocispec.ImageIndexFile
)

// maxImages bounds how many images a layout's index or a docker archive may list.
const maxImages = 10_000

// layout is an image of an OCI image layout.
type layout struct {
	files  tree
	chosen []ocispec.Descriptor
}

var _ Source = (*layout)(nil)

// openLayout chooses the image called tag. It owns files, also when it fails.
func openLayout(files tree, tag string) (_ *layout, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, files.Close())
		}
	}()
	version, err := readDocument(files, layoutFile)
	if err != nil {
		return nil, fmt.Errorf("this is no OCI image layout: %w", err)
	}
	if err := checkLayoutVersion(version); err != nil {
		return nil, err
	}
	index, err := readDocument(files, indexFile)
	if err != nil {
		return nil, err
	}
	all, err := parseIndex(index)
	if err != nil {
		return nil, err
	}
	chosen, err := choose(all, tag)
	if err != nil {
		return nil, err
	}
	return &layout{files: files, chosen: chosen}, nil
}

func checkLayoutVersion(b []byte) error {
	var l ocispec.ImageLayout
	if err := json.Unmarshal(b, &l); err != nil {
		return fmt.Errorf("%s: %w", layoutFile, err)
	}
	if l.Version != ocispec.ImageLayoutVersion {
		return fmt.Errorf("%s: version %q, only %s is known", layoutFile, l.Version, ocispec.ImageLayoutVersion)
	}
	return nil
}

func parseIndex(b []byte) ([]ocispec.Descriptor, error) {
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, fmt.Errorf("%s: %w", indexFile, err)
	}
	if n := len(index.Manifests); n > maxImages {
		return nil, fmt.Errorf("%s: %d images, at most %d can be listed", indexFile, n, maxImages)
	}
	return index.Manifests, nil
}

// choose returns the images called tag. Without a tag all must have the same name, or none.
func choose(all []ocispec.Descriptor, tag string) ([]ocispec.Descriptor, error) {
	chosen := all
	if tag != "" {
		chosen = nil
		for _, desc := range all {
			if answersTo(desc, tag) {
				chosen = append(chosen, desc)
			}
		}
	}
	names := imageNames(chosen)
	switch {
	case len(all) == 0:
		return nil, errors.New("it holds no image")
	case len(chosen) == 0:
		return nil, fmt.Errorf("it has no image %q\n  it has: %s", tag, strings.Join(imageNames(all), ", "))
	case len(names) > 1:
		return nil, fmt.Errorf("it has several images: append one of these names after a colon\n  %s", strings.Join(names, "\n  "))
	}
	return chosen, nil
}

// imageNames lists the different names, sorted.
func imageNames(all []ocispec.Descriptor) []string {
	var names []string
	for _, desc := range all {
		names = append(names, imageName(desc))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

const noName = "(an image without a name)"

// imageName prefers the name that docker and containerd write: their ref.name is the tag alone.
func imageName(desc ocispec.Descriptor) string {
	for _, key := range []string{images.AnnotationImageName, ocispec.AnnotationRefName} {
		if name := desc.Annotations[key]; name != "" {
			return name
		}
	}
	return noName
}

func answersTo(desc ocispec.Descriptor, tag string) bool {
	full := desc.Annotations[images.AnnotationImageName]
	return tag == desc.Annotations[ocispec.AnnotationRefName] || sameImage(full, tag)
}

// sameImage says whether a name, perhaps a short one, is that of an image.
func sameImage(image, name string) bool {
	if image == "" || image == name {
		return image == name
	}
	a, aerr := reference.ParseDockerRef(image)
	b, berr := reference.ParseDockerRef(name)
	return aerr == nil && berr == nil && a.String() == b.String()
}

func (l *layout) Resolve(context.Context) ([]ocispec.Descriptor, error) { return l.chosen, nil }

func (l *layout) Document(_ context.Context, desc ocispec.Descriptor) ([]byte, error) {
	name, err := blobName(desc.Digest)
	if err != nil {
		return nil, err
	}
	return readDocument(l.files, name)
}

func (l *layout) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	name, err := blobName(desc.Digest)
	if err != nil {
		return nil, err
	}
	f, err := l.files.open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the layout does not contain it: %w", err)
	}
	if err != nil {
		return nil, err
	}
	return bound{ctx, f}, nil
}

func (l *layout) Close() error { return l.files.Close() }

func blobName(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("digest %q: %w", d, err)
	}
	return "blobs/" + d.Algorithm().String() + "/" + d.Encoded(), nil
}
