package main

import (
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// compression is how layers are packed.
type compression struct {
	form string
	// first are files that come first in a form with an index, before a landmark up to which clients prefetch. Without such files the
	// landmark says that nothing is to be prefetched.
	first []string
}

// packed is what the manifest and the configuration say of a layer.
type packed struct {
	mediaType   string
	diffID      digest.Digest
	annotations map[string]string
}

// pack writes a tar to w.
func (c compression) pack(w io.Writer, tar *os.File) (packed, error) {
	switch c.form {
	case "gzip":
		z, err := gzip.NewWriterLevel(w, gzipLevel)
		if err != nil {
			return packed{}, err
		}
		return packStream(z, tar, ocispec.MediaTypeImageLayerGzip)
	case "zstd":
		z, err := zstd.NewWriter(w)
		if err != nil {
			return packed{}, err
		}
		return packStream(z, tar, ocispec.MediaTypeImageLayerZstd)
	case "none":
		return packStream(uncompressed{w}, tar, ocispec.MediaTypeImageLayer)
	case "estargz":
		return c.packIndexed(w, tar, ocispec.MediaTypeImageLayerGzip, map[string]string{}, estargz.WithCompressionLevel(gzipLevel))
	case "zstdchunked-stargz":
		annotations := map[string]string{} // the compressor adds where the index is, and its digest
		return c.packIndexed(w, tar, ocispec.MediaTypeImageLayerZstd, annotations, estargz.WithCompression(zstdChunked{
			&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: annotations}, &zstdchunked.Decompressor{},
		}))
	}
	return packed{}, fmt.Errorf("no form %q (gzip, zstd, none, estargz, zstdchunked-stargz)", c.form)
}

// gzipLevel is that of common image builders.
const gzipLevel = 6

type uncompressed struct{ io.Writer }

func (uncompressed) Close() error { return nil }

// packStream makes a layer without an index.
func packStream(z io.WriteCloser, tar io.Reader, mediaType string) (packed, error) {
	diffID := digest.Canonical.Digester()
	if _, err := io.Copy(io.MultiWriter(z, diffID.Hash()), tar); err != nil {
		return packed{}, err
	}
	return packed{mediaType: mediaType, diffID: diffID.Digest()}, z.Close()
}

// zstdChunked is both directions in one value, as the library wants it.
type zstdChunked struct {
	*zstdchunked.Compressor
	*zstdchunked.Decompressor
}

// packIndexed makes a layer with an index. Its tar is another one: in the order of first, with landmarks.
func (c compression) packIndexed(w io.Writer, tar *os.File, mediaType string, annotations map[string]string, opts ...estargz.Option) (packed, error) {
	info, err := tar.Stat()
	if err != nil {
		return packed{}, err
	}
	// The number of parts that are packed side by side decides where gzip members begin: it is fixed, so that all machines make the same
	// image.
	opts = append(opts, estargz.WithParallelism(2))
	if len(c.first) > 0 {
		var missed []string // a file is in one of the layers, not in all
		opts = append(opts, estargz.WithPrioritizedFiles(c.first), estargz.WithAllowPrioritizeNotFound(&missed))
	}
	blob, err := estargz.Build(io.NewSectionReader(tar, 0, info.Size()), opts...)
	if err != nil {
		return packed{}, err
	}
	defer blob.Close()
	if _, err := io.Copy(w, blob); err != nil {
		return packed{}, err
	}
	// Digest and size of the tar are known only now that the blob was read.
	size, err := blob.UncompressedSize()
	if err != nil {
		return packed{}, err
	}
	annotations[estargz.TOCJSONDigestAnnotation] = blob.TOCDigest().String()
	annotations[estargz.StoreUncompressedSizeAnnotation] = strconv.FormatInt(size, 10)
	return packed{mediaType: mediaType, diffID: blob.DiffID(), annotations: annotations}, blob.Close()
}
