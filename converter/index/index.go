// Package index is what all formats of layer indexes have in common: a stream of records that describe the files of a layer without
// its data, and the extents from which those data can be fetched piece by piece, each verified alone.
//
//	manifest's annotations ─► format.Open(layer, blob) ─► Index ─► Records ─► Record {attributes, extents}     the tree, at once
//	                                                                                      │
//	                          bytes of a range of the blob ─► Decoder ◄───────────────────┘                    contents, on demand
//
// One package below this one reads one format; each has a function Open with the same signature. Open gives ErrNotLazy for a layer whose
// manifest names no index of that format: try the next one, or pull the layer as a whole. A Reader gives it for an index by which some
// data could not be verified. Every other error means that the index is broken, or not what the manifest says, or asks for too much
// (ErrLimit); the layer can still be pulled as a whole. Errors of reading the blob are wrapped as they are.
//
// # Records
//
// Records come in the order of the layer's tar archive and mean what tar entries mean, so that one and the same code makes a tree of
// both: a later record of a name replaces an earlier one, a hard link refers to what its target is at that moment, parents that are
// missing are implied, whiteouts are files called ".wh.*". What a record cannot be is checked here, see Record.
//
// A format may know less of a file than the tar: see the packages for what is lost. No format can express a name that is not UTF-8;
// writers put U+FFFD there, and such a record is an error here, because the file would get another name.
//
// # Trust
//
// Open compares the digest of the index with the one in the manifest before it believes a byte of it. From there on the index is the
// manifest's word, but still hostile: all numbers are checked against the blob and against Limits. That the index describes the same
// files as the layer's tar can only be checked when the whole layer is there.
//
// The package does no I/O of its own, and nothing survives in it.
package index

import (
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
)

// Layer is what a manifest says about a layer.
type Layer struct {
	// Annotations are those of the layer's descriptor in the manifest, which must have been verified.
	Annotations map[string]string
	// Size is the length of the blob in bytes.
	Size int64
}

// Index is the index of one layer after its digest was compared with the manifest's.
type Index struct {
	// Format names the format and, where there are several, the dialect: "estargz", "zstd:chunked/podman".
	Format string
	// Digest identifies the index: the same digest for the same layer gives the same records.
	Digest digest.Digest
	// Codec is how the layer's blob is compressed.
	Codec Codec
	// Hidden are names of regular files in the root of the layer's tar that belong to the format. There are no records of them.
	Hidden []string
	// Records starts with the first record. It can be called more than once.
	Records func() (Reader, error)
}

// Reader delivers the records of an index. It is used by one goroutine.
type Reader interface {
	// Next returns the next record, which the caller may keep, and io.EOF after the last. An error is final.
	Next() (*Record, error)
	// Prefetch returns how many bytes from the beginning of the blob the image's author wants to be fetched first, 0 if that is not
	// known. It is complete after Next has returned io.EOF.
	Prefetch() int64
}

// Limits bound what an index may ask for. A zero field takes the default.
type Limits struct {
	// CompressedBytes is the largest index as it is fetched. Default 50 MiB, as in containers/storage.
	CompressedBytes int64
	// Bytes is the largest index after decompression. Default 150 MiB; an index of 500,000 files has about that size.
	Bytes int64
	// Entries is the largest number of files and extents together. Default 2 Mi.
	Entries int
	// FileBytes is the largest size of a file. Default 2 TiB.
	FileBytes int64
	// ExtentBytes is the largest extent that has data. Default 64 MiB: it is held in memory until its digest was compared.
	ExtentBytes int64
	// SkipBytes is the largest Extent.Skip. Default 256 MiB: it may be decompressed for nothing.
	SkipBytes int64
	// RangeBytes is the longest range of the blob that is fetched for one extent. Default 128 MiB.
	RangeBytes int64
}

// WithDefaults returns l with the defaults in place of zeros.
func (l Limits) WithDefaults() Limits {
	set := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	set(&l.CompressedBytes, 50<<20)
	set(&l.Bytes, 150<<20)
	set(&l.FileBytes, 2<<40)
	set(&l.ExtentBytes, 64<<20)
	set(&l.SkipBytes, 256<<20)
	set(&l.RangeBytes, 128<<20)
	if l.Entries == 0 {
		l.Entries = 2 << 20
	}
	return l
}

var (
	// ErrNotLazy is wrapped by errors about layers that have no usable index, which is nobody's fault.
	ErrNotLazy = errors.New("layer cannot be loaded on demand")
	// ErrLimit is wrapped by errors about indexes that ask for more than Limits allow.
	ErrLimit = errors.New("limit exceeded")
)

// ReadRange returns a range of a blob. It is for formats that read their index at once.
func ReadRange(blob io.ReaderAt, r Range) ([]byte, error) {
	p := make([]byte, r.Bytes())
	n, err := blob.ReadAt(p, r.Start)
	if n < len(p) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read %s of the layer's blob: %w", r, err)
	}
	return p, nil
}
