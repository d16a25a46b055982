package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// layer is a compressed layer from which images are composed.
type layer struct {
	ocispec.Descriptor
	diffID digest.Digest
	path   string // of the blob
	// Of newLayer: its only file, and the SHA-256 of what is in it.
	name    string
	content [32]byte
}

// layoutBlob is the path of a blob in an OCI layout.
func layoutBlob(layout string, d digest.Digest) string {
	return filepath.Join(layout, "blobs", d.Algorithm().String(), d.Encoded())
}

// readLayout returns the manifest and the configuration of a layout with one image.
func readLayout(layout string) (manifest ocispec.Manifest, config ocispec.Image, _ digest.Digest, err error) {
	var index ocispec.Index
	err = readJSON(filepath.Join(layout, "index.json"), &index)
	if err != nil || len(index.Manifests) != 1 {
		return manifest, config, "", errors.Join(err, errors.New(layout+": not one image"))
	}
	err = readJSON(layoutBlob(layout, index.Manifests[0].Digest), &manifest)
	if err == nil {
		err = readJSON(layoutBlob(layout, manifest.Config.Digest), &config)
	}
	return manifest, config, index.Manifests[0].Digest, err
}

func readJSON(path string, into any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// cachedLayers returns the layers of an image in the cache, lowest first.
func (s *story) cachedLayers(image string) []layer {
	s.t.Helper()
	layout := lab.Layout(image)
	manifest, config, _, err := readLayout(layout)
	s.must(err)
	var layers []layer
	for i, l := range manifest.Layers {
		layers = append(layers, layer{Descriptor: l, diffID: config.RootFS.DiffIDs[i], path: layoutBlob(layout, l.Digest)})
	}
	return layers
}

// newLayer makes a layer with one file of n random bytes, which do not compress.
func (s *story) newLayer(name string, n int) layer {
	s.t.Helper()
	content := make([]byte, n)
	var seed [32]byte
	copy(seed[:], name)
	_, _ = rand.NewChaCha8(seed).Read(content)
	var archive, blob bytes.Buffer
	w := tar.NewWriter(&archive)
	s.must(w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(n)}))
	_, err := w.Write(content)
	s.must(errors.Join(err, w.Close()))
	z, err := gzip.NewWriterLevel(&blob, gzip.BestSpeed)
	s.must(err)
	_, err = z.Write(archive.Bytes())
	s.must(errors.Join(err, z.Close()))
	l := layer{
		diffID: digest.FromBytes(archive.Bytes()), path: filepath.Join(s.t.TempDir(), "blob"), name: name, content: sha256.Sum256(content),
	}
	l.Descriptor = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(blob.Bytes()), Size: int64(blob.Len())}
	s.must(os.WriteFile(l.path, blob.Bytes(), 0o644))
	return l
}

// linkOrCopy gives a file another name, which may be there already, on another filesystem a copy. crane refuses symbolic links.
func linkOrCopy(from, to string) error {
	err := os.Link(from, to)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

// compose makes an image of layers, lowest first, pushes it, and returns its reference.
func (s *story) compose(name string, layers ...layer) string {
	s.t.Helper()
	layout := s.t.TempDir()
	s.must(os.MkdirAll(filepath.Join(layout, "blobs", "sha256"), 0o755))
	var ids []digest.Digest
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		ids = append(ids, l.diffID)
		manifest.Layers = append(manifest.Layers, l.Descriptor)
		s.must(linkOrCopy(l.path, layoutBlob(layout, l.Digest)))
	}
	put := func(mediaType string, v any) ocispec.Descriptor {
		b, err := json.Marshal(v)
		s.must(err)
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
		s.must(os.WriteFile(layoutBlob(layout, d.Digest), b, 0o644))
		return d
	}
	platform := ocispec.Platform{Architecture: "amd64", OS: "linux"}
	manifest.Config = put(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: platform, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: ids}, Config: ocispec.ImageConfig{Cmd: []string{"/bin/sh"}},
	})
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{put(ocispec.MediaTypeImageManifest, manifest)}}
	b, err := json.Marshal(index)
	s.must(err)
	s.must(os.WriteFile(filepath.Join(layout, "index.json"), b, 0o644))
	s.must(os.WriteFile(filepath.Join(layout, ocispec.ImageLayoutFile), []byte(`{"imageLayoutVersion": "1.0.0"}`), 0o644))
	ref := s.Ref(name)
	s.must(s.Push(s.ctx, layout, ref))
	return ref
}
