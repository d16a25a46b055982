// Package stargzlayer makes eStargz layers for tests: honest ones, by the library that everybody makes them with, and some whose table of
// contents says something else than the tar.
package stargzlayer

import (
	"bytes"
	"compress/gzip"
	"io"
	"maps"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Layer is a layer with the descriptor that a manifest has of it.
type Layer struct {
	ocispec.Descriptor
	Blob []byte
	// DiffID is that of the whole tar, which holds the table of contents, too.
	DiffID digest.Digest
}

// Pack makes a layer of a tar archive.
func Pack(t testing.TB, archive []byte, options ...estargz.Option) Layer {
	t.Helper()
	options = append([]estargz.Option{estargz.WithCompressionLevel(gzip.BestSpeed)}, options...)
	built, err := estargz.Build(io.NewSectionReader(bytes.NewReader(archive), 0, int64(len(archive))), options...)
	must(t, err)
	defer built.Close()
	blob, err := io.ReadAll(built)
	must(t, err)
	return describe(t, blob, built.TOCDigest())
}

// WithTOC is the layer with another table of contents, and the digest of that in the descriptor: nothing shows before the tar was read that it
// is a lie, if it is one.
func (l Layer) WithTOC(t testing.TB, change func(*estargz.JTOC)) Layer {
	t.Helper()
	var format estargz.GzipDecompressor
	_, at, size, err := format.ParseFooter(l.Blob[len(l.Blob)-estargz.FooterSize:])
	must(t, err)
	if size <= 0 {
		size = int64(len(l.Blob)) - estargz.FooterSize - at
	}
	toc, _, err := format.ParseTOC(io.NewSectionReader(bytes.NewReader(l.Blob), at, size))
	must(t, err)
	change(toc)
	blob := bytes.NewBuffer(bytes.Clone(l.Blob[:at]))
	name, err := estargz.NewGzipCompressor().WriteTOCAndFooter(blob, at, toc, nil)
	must(t, err)
	return describe(t, blob.Bytes(), name)
}

// Swapped is the layer with a table of contents in which each of two files has the other's contents.
func (l Layer) Swapped(t testing.TB, one, two string) Layer {
	t.Helper()
	found := 0
	swapped := l.WithTOC(t, func(toc *estargz.JTOC) {
		for _, e := range toc.Entries {
			if other, ok := map[string]string{one: two, two: one}[e.Name]; ok {
				e.Name = other
				found++
			}
		}
	})
	if found < 2 {
		t.Fatalf("%s and %s are not both in the layer", one, two)
	}
	return swapped
}

// WithBlob is the layer with another blob, and the digest of that in the descriptor. It must still be a gzip stream.
func (l Layer) WithBlob(t testing.TB, change func(blob []byte)) Layer {
	t.Helper()
	blob := bytes.Clone(l.Blob)
	change(blob)
	return describe(t, blob, digest.Digest(l.Annotations[estargz.TOCJSONDigestAnnotation]))
}

// Renamed is the layer with a descriptor whose annotations are changed.
func (l Layer) Renamed(annotation, value string) Layer {
	l.Annotations = maps.Clone(l.Annotations)
	l.Annotations[annotation] = value
	return l
}

// describe makes the descriptor of a blob.
func describe(t testing.TB, blob []byte, toc digest.Digest) Layer {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(blob))
	must(t, err)
	tar := digest.SHA256.Digester()
	_, err = io.Copy(tar.Hash(), z)
	must(t, err)
	return Layer{Blob: blob, DiffID: tar.Digest(), Descriptor: ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(blob), Size: int64(len(blob)),
		Annotations: map[string]string{estargz.TOCJSONDigestAnnotation: toc.String()},
	}}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
