package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// commit makes an image of a running container as `nerdctl commit` does: the diff of its snapshot becomes a layer in the content
// store, beside it a new configuration and manifest, and the new image is unpacked.
func (s *story) commit(c containerd.Container, base containerd.Image, name string) containerd.Image {
	s.t.Helper()
	ctx, release := s.leased()
	defer release()
	task, err := c.Task(ctx, nil)
	s.must(err)
	s.must(task.Pause(ctx))
	layer, err := rootfs.CreateDiff(ctx, c.ID(), s.Client().SnapshotService(lab.Snapshotter), s.Client().DiffService())
	s.must(err)
	s.must(task.Resume(ctx))
	target, err := s.writeImage(ctx, base, layer)
	s.must(err)
	_, err = s.Client().ImageService().Create(ctx, images.Image{Name: name, Target: target, CreatedAt: time.Now()})
	s.must(err)
	img, err := s.Client().GetImage(ctx, name)
	s.must(err)
	s.must(img.Unpack(ctx, lab.Snapshotter))
	return img
}

// writeImage writes configuration and manifest of an image that is the base and a layer on top.
func (s *story) writeImage(ctx context.Context, base containerd.Image, layer ocispec.Descriptor) (ocispec.Descriptor, error) {
	store := s.Client().ContentStore()
	info, err := store.Info(ctx, layer.Digest)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	diffID, err := digest.Parse(info.Labels["containerd.io/uncompressed"])
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("label of layer %s: %w", layer.Digest, err)
	}
	manifest, err := images.Manifest(ctx, store, base.Target(), platforms.Default())
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var config ocispec.Image
	b, err := content.ReadBlob(ctx, store, manifest.Config)
	if err == nil {
		err = json.Unmarshal(b, &config)
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
	configDescriptor, err := s.writeJSON(ctx, ocispec.MediaTypeImageConfig, config, nil)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	layers := append(manifest.Layers, layer)
	labels := map[string]string{"containerd.io/gc.ref.content.0": configDescriptor.Digest.String()}
	for i, l := range layers {
		labels[fmt.Sprintf("containerd.io/gc.ref.content.%d", i+1)] = l.Digest.String()
	}
	return s.writeJSON(ctx, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    configDescriptor,
		Layers:    layers,
	}, labels)
}

func (s *story) writeJSON(ctx context.Context, mediaType string, value any, labels map[string]string) (ocispec.Descriptor, error) {
	b, err := json.Marshal(value)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	err = content.WriteBlob(ctx, s.Client().ContentStore(), "commit-"+d.Digest.String(), bytes.NewReader(b), d, content.WithLabels(labels))
	if errdefs.IsAlreadyExists(err) {
		err = nil
	}
	return d, err
}
