// Package warm is the form in which extents of layers go from one machine to another: a stream that `cache export` writes and `cache import` reads.
//
// It is a tar archive, so that people can look into it:
//
//	erofs-snapshotter-cache.json     {"format": 1}
//	<instance>/layer.json            {"digest": "sha256:…"}, a layer begins
//	<instance>/<offset>              an extent: the bytes of the data blob from there on; 16 hex digits
//	…                                in the order of offsets; then other layers
//	end.json                         {"extents": n, "bytes": n, "damaged": n}
//
// An instance is named by its id, which is the same on all machines that have pulled the layer by the same index. There is nothing in the stream that
// says what the bytes should be: whoever reads it knows that from the layer's index, which its manifest names, and compares every extent.
//
// A Reader is for streams of strangers. All lengths are bounded, it holds no contents, and what it takes of memory is that of the names of layers. A
// stream without its end is io.ErrUnexpectedEOF: all that came before is as good as in one that has it.
package warm

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
)

// Format is the version of the stream. A Reader reads no other.
const Format = 1

// Names of the entries that are no extents.
const (
	beginName = "erofs-snapshotter-cache.json"
	layerName = "layer.json" // below the name of an instance
	endName   = "end.json"
)

const (
	// maxDocumentBytes bounds the JSON documents, which have less than 200.
	maxDocumentBytes = 4 << 10
	// maxLayers bounds what a Reader remembers: 6 MiB. A machine has some thousands.
	maxLayers = 1 << 16
	// instanceDigits and offsetDigits are those of names.
	instanceDigits = 64
	offsetDigits   = 16
)

// ErrFormat says that something is no stream of this package.
var ErrFormat = errors.New("not an export of the cache, or a damaged one")

// Layer is a layer instance.
type Layer struct {
	// Instance is its id, 64 hex digits in lower case.
	Instance string
	// Digest is that of the layer, for people.
	Digest digest.Digest
}

func (l Layer) check() error {
	if !isHex(l.Instance, instanceDigits) {
		return fmt.Errorf("instance %.100q is not %d hex digits", l.Instance, instanceDigits)
	}
	if err := l.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %.100q of instance %s: %w", l.Digest, l.Instance, err)
	}
	return nil
}

// Extent is a range of a data blob.
type Extent struct {
	Offset int64
	Length uint32
}

func (x Extent) end() int64 { return x.Offset + int64(x.Length) }

// check checks an extent that comes after another.
func (x Extent) check(before Extent) error {
	switch {
	case x.Length == 0 || x.Length > blob.MaxExtentBytes:
		return fmt.Errorf("extent at %d has %d bytes, want 1 to %d", x.Offset, x.Length, blob.MaxExtentBytes)
	case x.Offset < before.end():
		return fmt.Errorf("extent at %d comes after one that ends at %d", x.Offset, before.end())
	case x.Offset > blob.MaxDataBytes-int64(x.Length):
		return fmt.Errorf("extent at %d ends after %d", x.Offset, int64(blob.MaxDataBytes))
	}
	return nil
}

// Sum says what a stream has.
type Sum struct {
	Extents int64 `json:"extents"`
	Bytes   int64 `json:"bytes"`
	// Damaged is how many extents were left out because the disk had other bytes than it should.
	Damaged int64 `json:"damaged,omitempty"`
}

func (s *Sum) add(x Extent) {
	s.Extents++
	s.Bytes += int64(x.Length)
}

// documents of a stream.
type (
	beginning struct {
		Format int `json:"format"`
	}
	description struct {
		Digest digest.Digest `json:"digest"`
	}
)

// header is that of an entry.
func header(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, Format: tar.FormatUSTAR}
}

func document(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // they have numbers and strings only
	}
	return append(b, '\n')
}

func isHex(s string, digits int) bool {
	return len(s) == digits && strings.Trim(s, "0123456789abcdef") == ""
}
