package main

import (
	"bytes"
	_ "crypto/sha256" // for digest.Canonical
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// created is the same in every image, so that equal layers give equal images.
var created = time.Unix(1_700_000_000, 0).UTC()

func timeOf(ts unix.Timespec) time.Time { return time.Unix(ts.Sec, ts.Nsec) }

// writeLayout writes an OCI layout with one image of the given layers. The layout appears complete or not at all.
func writeLayout(out string, c compression, entrypoint string, layers []string) error {
	part := out + ".part"
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	defer os.RemoveAll(part)
	blobs := filepath.Join(part, ocispec.ImageBlobsDir, string(digest.Canonical))
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	manifest, err := writeImage(blobs, c, entrypoint, layers)
	if err != nil {
		return err
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{manifest}}
	for name, content := range map[string]any{
		ocispec.ImageIndexFile:  index,
		ocispec.ImageLayoutFile: ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion},
	} {
		b, err := json.Marshal(content)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(part, name), b, 0o644); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	return os.Rename(part, out)
}

// writeImage writes layers, configuration and manifest of one image and returns the descriptor of the manifest.
func writeImage(blobs string, c compression, entrypoint string, layers []string) (ocispec.Descriptor, error) {
	image := ocispec.Image{Created: &created, Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}}
	image.RootFS.Type = "layers"
	image.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	image.Config.WorkingDir = "/"
	if entrypoint != "" {
		if err := json.Unmarshal([]byte(entrypoint), &image.Config.Entrypoint); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("entrypoint %s: %w", entrypoint, err)
		}
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, layer := range layers {
		desc, diffID, err := addLayer(blobs, c, layer)
		if err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("layer %s: %w", layer, err)
		}
		manifest.Layers = append(manifest.Layers, desc)
		image.RootFS.DiffIDs = append(image.RootFS.DiffIDs, diffID)
		image.History = append(image.History, ocispec.History{Created: &created, CreatedBy: filepath.Base(layer)})
	}
	var err error
	if manifest.Config, err = addJSON(blobs, ocispec.MediaTypeImageConfig, image); err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, err := addJSON(blobs, ocispec.MediaTypeImageManifest, manifest)
	desc.Platform = &image.Platform
	return desc, err
}

func addLayer(blobs string, c compression, path string) (ocispec.Descriptor, digest.Digest, error) {
	layer, err := os.Open(path)
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	defer layer.Close()
	var p packed
	desc, err := addBlob(blobs, func(w io.Writer) (err error) {
		p, err = c.pack(w, layer)
		return err
	})
	desc.MediaType, desc.Annotations = p.mediaType, p.annotations
	return desc, p.diffID, err
}

func addJSON(blobs, mediaType string, v any) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, err := addBlob(blobs, func(w io.Writer) error {
		_, err := io.Copy(w, bytes.NewReader(b))
		return err
	})
	desc.MediaType = mediaType
	return desc, err
}

// addBlob stores what write writes under its digest.
func addBlob(blobs string, write func(io.Writer) error) (ocispec.Descriptor, error) {
	f, err := os.CreateTemp(blobs, ".part-*")
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer f.Close()
	digester := digest.Canonical.Digester()
	if err := write(io.MultiWriter(f, digester.Hash())); err != nil {
		return ocispec.Descriptor{}, err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := f.Chmod(0o644); err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := os.Rename(f.Name(), filepath.Join(blobs, digester.Digest().Encoded())); err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{Digest: digester.Digest(), Size: size}, nil
}
