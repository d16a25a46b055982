// Package source is where the bytes of an image come from when there is no containerd: a registry, an OCI image layout in a
// directory or an archive, or an archive of docker save.
//
//	registry               a reference, through a client that the caller brings
//	OCI layout             a directory with oci-layout, index.json and blobs/
//	OCI archive            the same files in a tar
//	docker archive         a tar with manifest.json, which names a config and layers for each image
//
// Archives are read where they lie: blobs are sections of the file. One that is compressed is decompressed once, into a file without
// a name that the kernel frees with its last user, so nothing is left after a crash.
//
// Nothing that a source returns is verified here, and all of it may be hostile: names are only looked up, never joined to paths outside
// of a layout (os.Root), sizes and counts are bounded, and special files are refused. Package image verifies documents, the layer store
// layers.
package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxDocumentBytes bounds an index, a manifest and a config. Registries refuse manifests above 4 MiB; no config comes near it.
const maxDocumentBytes = 8 << 20

// Source is one image, or a few of one name for different platforms. Safe for concurrent use.
type Source interface {
	// Resolve returns what the name stands for: one index or manifest, or several for different platforms.
	Resolve(ctx context.Context) ([]ocispec.Descriptor, error)
	// Document returns an index, a manifest or a config, of bounded length. The bytes are not verified.
	Document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
	// Open returns a layer's blob, not verified. Reading ends with an error when ctx does.
	Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
	// Close lets go of files. Streams that are open end with an error.
	Close() error
}

// Options of Open. The zero value opens local images.
type Options struct {
	// Registry is asked for images of kind Registry.
	Registry Registry
	// Scratch is the directory in which room for a compressed archive is taken.
	Scratch string
	// Decompressing is called before a compressed archive is decompressed, with its path and length, unless it is nil.
	Decompressing func(path string, bytes int64)
}

// Open opens the image that a name stands for. Its errors do not name the image.
func Open(ctx context.Context, name Name, opts Options) (Source, error) {
	if name.Kind == InRegistry {
		if opts.Registry == nil {
			return nil, errors.New("no registry client")
		}
		return &registryImage{registry: opts.Registry, image: name.Reference}, nil
	}
	return openLocal(ctx, name, opts)
}

func openLocal(ctx context.Context, name Name, opts Options) (Source, error) {
	fi, err := os.Stat(name.Path)
	if err != nil {
		return nil, err
	}
	switch {
	case fi.IsDir():
		if name.Kind == OCIArchive || name.Kind == DockerArchive {
			return nil, errors.New("it is a directory, not an archive (oci:DIR names an OCI layout)")
		}
		files, err := openDirectory(name.Path)
		if err != nil {
			return nil, err
		}
		return openLayout(files, name.Tag)
	case !fi.Mode().IsRegular():
		return nil, errors.New("it is neither a directory nor a regular file")
	case name.Kind == OCILayout:
		return nil, errors.New("it is a file, not a directory with an OCI layout (oci-archive:FILE names an archive)")
	}
	files, err := openArchive(ctx, name.Path, opts)
	if err != nil {
		return nil, err
	}
	// docker save writes both forms since Docker 25. The OCI one has digests of everything.
	if name.Kind == OCIArchive || name.Kind == Local && files.has(layoutFile) {
		return openLayout(files, name.Tag)
	}
	return openDocker(ctx, files, name.Tag)
}

// tree is a set of files that are found by their slash-separated names. Safe for concurrent use.
type tree interface {
	// open returns an error that is fs.ErrNotExist for a name that is not there.
	open(name string) (file, error)
	Close() error
}

// file is an open file of a tree.
type file struct {
	io.ReadCloser
	size int64
}

// readDocument returns the whole of a file of bounded length.
func readDocument(files tree, name string) ([]byte, error) {
	f, err := files.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if f.size > maxDocumentBytes {
		return nil, fmt.Errorf("%s: it has %d bytes, at most %d are read", name, f.size, maxDocumentBytes)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxDocumentBytes))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

// bound is a stream that ends with an error when ctx does. Reads of local files do not block, so it asks before each.
type bound struct {
	ctx context.Context
	io.ReadCloser
}

func (b bound) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	return b.ReadCloser.Read(p)
}
