package index

import (
	"crypto/sha256"
	"fmt"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tarstream"
)

// Record describes one file of a layer, as an entry of the layer's tar does.
//
// Its header is a tar header with these differences. Name, and Linkname of a hard link, are clean: relative, without empty, "." and ".."
// components, and empty for the root; no string contains a NUL. Xattrs are sorted by name. Sparse is nil: holes are extents. Offset is -1.
type Record struct {
	tarstream.Header
	// Extents are the contents of a regular file, in order and without gaps from 0 to Size. Other records have none.
	Extents []Extent
}

// Extent is a range of a file that is fetched and verified as a unit, or a hole.
type Extent struct {
	// Offset is the position in the file, Length the number of bytes (> 0).
	Offset, Length int64
	// Hole says that the range is zeros, which nobody needs to fetch. The fields below are zero then.
	Hole bool
	// Blob is the range of the layer's blob to fetch. It starts where a compressed stream starts, and may be longer than what the
	// extent needs. Several extents may have the same range.
	Blob Range
	// Skip is how many bytes of the decompressed range come before the extent.
	Skip int64
	// Digest is the SHA-256 of the extent's bytes.
	Digest [sha256.Size]byte
}

// Range is a range of bytes of a blob, from Start up to End.
type Range struct{ Start, End int64 }

// Bytes is the length of the range.
func (r Range) Bytes() int64 { return r.End - r.Start }

// Within says whether r has a byte and lies in the first size bytes.
func (r Range) Within(size int64) bool { return r.Start >= 0 && r.Start < r.End && r.End <= size }

func (r Range) String() string { return fmt.Sprintf("bytes %d to %d", r.Start, r.End) }
