// Package imagetest makes small images for tests, as an OCI layout, an OCI archive or an archive of docker save.
package imagetest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// File is one entry of a layer: a directory if the name ends with a slash, a whiteout if the last part begins with ".wh.".
type File struct{ Name, Content string }

// Tar returns the tar stream of a layer.
func Tar(files ...File) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.Name, Mode: 0o755, Size: int64(len(f.Content)), Typeflag: tar.TypeReg}
		if strings.HasSuffix(f.Name, "/") {
			h.Typeflag = tar.TypeDir
		}
		must(w.WriteHeader(h))
		_, err := w.Write([]byte(f.Content))
		must(err)
	}
	must(w.Close())
	return b.Bytes()
}

// must is for what cannot fail: writing to memory.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// Gzip compresses.
func Gzip(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	must(err)
	must(w.Close())
	return out.Bytes()
}

// Zstd compresses.
func Zstd(b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	must(err)
	return w.EncodeAll(b, nil)
}

// Blobs is the content of a layout: documents and layers.
type Blobs map[digest.Digest][]byte

// Add stores a blob and describes it.
func (b Blobs) Add(mediaType string, content []byte) ocispec.Descriptor {
	d := digest.FromBytes(content)
	b[d] = content
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}
}

// AddJSON stores a document.
func (b Blobs) AddJSON(mediaType string, v any) ocispec.Descriptor {
	content, err := json.Marshal(v)
	must(err)
	return b.Add(mediaType, content)
}

// Image stores an image for linux/amd64 of the given tars, each compressed with gzip, and describes its manifest.
func (b Blobs) Image(tars ...[]byte) ocispec.Descriptor {
	return b.ImageFor(ocispec.Platform{OS: "linux", Architecture: "amd64"}, tars...)
}

// ImageFor stores an image for a platform.
func (b Blobs) ImageFor(p ocispec.Platform, tars ...[]byte) ocispec.Descriptor {
	config := ocispec.Image{Platform: p, RootFS: ocispec.RootFS{Type: "layers"}}
	var layers []ocispec.Descriptor
	for _, t := range tars {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(t))
		layers = append(layers, b.Add(ocispec.MediaTypeImageLayerGzip, Gzip(t)))
	}
	return b.Manifest(config, layers...)
}

// Manifest stores a config and a manifest, which need not fit.
func (b Blobs) Manifest(config ocispec.Image, layers ...ocispec.Descriptor) ocispec.Descriptor {
	return b.AddJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: b.AddJSON(ocispec.MediaTypeImageConfig, config), Layers: layers,
	})
}

// Index stores an index.
func (b Blobs) Index(manifests ...ocispec.Descriptor) ocispec.Descriptor {
	return b.AddJSON(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests,
	})
}

// Named gives a descriptor the name of an image, as docker and containerd do.
func Named(desc ocispec.Descriptor, name string) ocispec.Descriptor {
	_, tag, _ := strings.Cut(name, ":")
	desc.Annotations = map[string]string{images.AnnotationImageName: name, ocispec.AnnotationRefName: tag}
	return desc
}

// Files returns the files of a layout with these images.
func (b Blobs) Files(manifests ...ocispec.Descriptor) []File {
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: manifests})
	must(err)
	files := []File{{"oci-layout", `{"imageLayoutVersion":"1.0.0"}`}, {"index.json", string(index)}}
	for d, content := range b {
		files = append(files, File{"blobs/sha256/" + d.Encoded(), string(content)})
	}
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	return files
}

// Layout writes a layout into a new directory.
func (b Blobs) Layout(t testing.TB, manifests ...ocispec.Descriptor) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range b.Files(manifests...) {
		path := filepath.Join(dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(f.Content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// WriteFile writes a file into a new directory.
func WriteFile(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// DockerFiles returns the files that docker save writes for an image of plain tars.
func DockerFiles(name string, tars ...[]byte) []File {
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	var files []File
	var layers []string
	for i, t := range tars {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(t))
		layers = append(layers, string(rune('a'+i))+"/layer.tar")
		files = append(files, File{layers[i], string(t)})
	}
	b, err := json.Marshal(config)
	must(err)
	configName := digest.FromBytes(b).Encoded() + ".json"
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": []string{name}, "Layers": layers}})
	must(err)
	return append(files, File{configName, string(b)}, File{"manifest.json", string(manifest)})
}
