package source

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// dockerManifestFile lists the images of a docker archive.
const dockerManifestFile = "manifest.json"

// maxDockerLayers bounds the layers of one image, as package image does: overlayfs takes 500.
const maxDockerLayers = 500

// dockerImage is what manifest.json says of one image.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// docker is an image of an archive of docker save, as if it had a manifest.
//
// The archive says no digests of layers. A layer that is a plain tar has its diffID as its digest; one that is compressed is read once to
// learn it. Either is checked when the layer is converted.
type docker struct {
	files    *archive
	manifest []byte
	desc     ocispec.Descriptor
	names    map[digest.Digest]string // of the config and the layers, in the archive
}

var _ Source = (*docker)(nil)

// openDocker chooses the image called tag. It owns files, also when it fails.
func openDocker(ctx context.Context, files *archive, tag string) (_ *docker, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, files.Close())
		}
	}()
	b, err := readDocument(files, dockerManifestFile)
	if err != nil {
		return nil, fmt.Errorf("this is no archive of docker save and no OCI archive: %w", err)
	}
	all, err := parseDockerManifest(b)
	if err != nil {
		return nil, err
	}
	chosen, err := chooseDocker(all, tag)
	if err != nil {
		return nil, err
	}
	d := &docker{files: files, names: map[digest.Digest]string{}}
	return d, d.describe(ctx, chosen)
}

func parseDockerManifest(b []byte) ([]dockerImage, error) {
	var all []dockerImage
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, fmt.Errorf("%s: %w", dockerManifestFile, err)
	}
	if len(all) > maxImages {
		return nil, fmt.Errorf("%s: %d images, at most %d can be listed", dockerManifestFile, len(all), maxImages)
	}
	for _, one := range all {
		if len(one.Layers) > maxDockerLayers {
			return nil, fmt.Errorf("%s: an image has %d layers, at most %d can be mounted", dockerManifestFile, len(one.Layers), maxDockerLayers)
		}
	}
	return all, nil
}

func chooseDocker(all []dockerImage, tag string) (dockerImage, error) {
	var names []string
	for _, one := range all {
		if len(all) == 1 && tag == "" {
			return one, nil
		}
		if tag != "" && slices.ContainsFunc(one.RepoTags, func(t string) bool { return sameImage(t, tag) }) {
			return one, nil
		}
		if len(one.RepoTags) == 0 {
			names = append(names, noName)
		}
		names = append(names, one.RepoTags...)
	}
	list := strings.Join(names, "\n  ")
	switch {
	case len(all) == 0:
		return dockerImage{}, errors.New("it holds no image")
	case tag != "":
		return dockerImage{}, fmt.Errorf("it has no image %q\n  it has:\n  %s", tag, list)
	}
	return dockerImage{}, fmt.Errorf("it has several images: append one of these names after a colon\n  %s", list)
}

// describe writes the manifest that the archive lacks.
func (d *docker) describe(ctx context.Context, one dockerImage) error {
	config, err := readDocument(d.files, one.Config)
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	configDesc := ocispec.Descriptor{MediaType: images.MediaTypeDockerSchema2Config, Digest: digest.FromBytes(config), Size: int64(len(config))}
	// The file is called by its digest, by every version of docker.
	name := strings.TrimSuffix(path.Base(one.Config), ".json")
	if promised := digest.NewDigestFromEncoded(digest.SHA256, name); promised.Validate() == nil && promised != configDesc.Digest {
		return fmt.Errorf("config %s: digest mismatch: it has %s", one.Config, configDesc.Digest)
	}
	d.names[configDesc.Digest] = one.Config
	var parsed ocispec.Image
	if err := json.Unmarshal(config, &parsed); err != nil {
		return fmt.Errorf("config %s: %w", one.Config, err)
	}
	if have, want := len(one.Layers), len(parsed.RootFS.DiffIDs); have != want {
		return fmt.Errorf("the archive lists %d layers, the image's config %d", have, want)
	}
	manifest := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: configDesc}
	manifest.SchemaVersion = 2
	for i, name := range one.Layers {
		layer, err := d.describeLayer(ctx, name, parsed.RootFS.DiffIDs[i])
		if err != nil {
			return fmt.Errorf("layer %d of %d, %s: %w", i+1, len(one.Layers), name, err)
		}
		d.names[layer.Digest] = name
		manifest.Layers = append(manifest.Layers, layer)
	}
	if d.manifest, err = json.Marshal(manifest); err != nil {
		return err
	}
	d.desc = ocispec.Descriptor{MediaType: manifest.MediaType, Digest: digest.FromBytes(d.manifest), Size: int64(len(d.manifest))}
	return nil
}

func (d *docker) describeLayer(ctx context.Context, name string, diffID digest.Digest) (ocispec.Descriptor, error) {
	f, err := d.files.open(name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer f.Close()
	// The media type says no more than that it is a tar: the converter looks for itself how it is compressed.
	layer := ocispec.Descriptor{MediaType: images.MediaTypeDockerSchema2Layer, Digest: diffID, Size: f.size}
	r := bufio.NewReaderSize(bound{ctx, f}, 1<<20)
	head, err := r.Peek(4)
	if err != nil && err != io.EOF {
		return ocispec.Descriptor{}, err
	}
	if compressionOf(head) != nil {
		if layer.Digest, err = digest.FromReader(r); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	return layer, nil
}

func (d *docker) Resolve(context.Context) ([]ocispec.Descriptor, error) {
	return []ocispec.Descriptor{d.desc}, nil
}

func (d *docker) Document(_ context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Digest == d.desc.Digest {
		return d.manifest, nil
	}
	return readDocument(d.files, d.names[desc.Digest])
}

func (d *docker) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	f, err := d.files.open(d.names[desc.Digest])
	if err != nil {
		return nil, err
	}
	return bound{ctx, f}, nil
}

func (d *docker) Close() error { return d.files.Close() }
