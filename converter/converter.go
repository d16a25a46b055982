// Package converter turns an OCI layer into an EROFS instance: a tar stream, or a directory in overlayfs form, becomes a meta
// image and a data blob in one pass; a layer's index becomes a meta image and the plan of a data blob, which is filled on demand.
//
// The two files are written as the input streams in; there is no temporary copy and no second pass over file contents. Memory
// holds metadata only (names, extended attributes, directory entries, extents), never file contents.
//
//	tar, tar+gzip, tar+zstd ─► decompress ─► tarstream ─► tree ─► erofs.Writer ─► meta image
//	overlay upper directory ────────────────────────────►   │            └──────► data blob
//	layer index ────────────────────────────────────────►   │                     or its extents
//
// The package needs no root, no kernel support and no containerd, and it never removes anything: the caller owns the two files
// and throws them away when an error comes back. Identical input gives identical bytes.
package converter

import (
	"fmt"
	"strconv"

	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/erofs"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tarstream"
)

// LayoutVersion names how the writer arranges bytes. It is part of every instance id: raise it with any change after which the
// same input gives other bytes.
const LayoutVersion = 1

// Target is where the two files of an instance go. Both are empty at the start; the converter neither syncs nor closes them.
type Target struct {
	// ID is the instance id. The image's UUID and its device tag are made from it.
	ID [32]byte
	// Meta becomes the meta image, Data the data blob. Contents are written from the front with few gaps, which stay holes.
	Meta, Data erofs.File
}

// Limits bound what one layer may ask for. A zero field takes the default.
type Limits struct {
	// FileBytes is the largest size one file may declare, holes included. Default 2 TiB: a sparse /var/log/lastlog of a user
	// with a 32-bit id needs 1.2 TiB.
	FileBytes int64
	// LayerBytes is the largest sum of the declared sizes of all files. Default 4 TiB.
	LayerBytes int64
	// StreamBytes is the longest uncompressed tar stream. Default 1 TiB.
	StreamBytes int64
	// Inodes is the largest number of entries, directories included that only a path names. Default 16 Mi; each takes 250 to 900
	// bytes of memory.
	Inodes int64
	// MetadataBytes is the largest sum of the lengths of what stays in memory besides: names, targets of symbolic links, attributes of
	// directories, and the extents of an index. Default 1 GiB.
	MetadataBytes int64
}

// Result is what one conversion found out.
type Result struct {
	// Blob and BlobBytes describe the stream as it was given, usually compressed; DiffID and DiffBytes the uncompressed tar,
	// trailing padding included. All four are zero if the input is not a tar.
	Blob      digest.Digest
	BlobBytes int64
	DiffID    digest.Digest
	DiffBytes int64

	// MetaBytes and DataBytes are the lengths of the two files, both multiples of 4096.
	MetaBytes, DataBytes int64
	// Inodes counts the inodes of the image.
	Inodes int64
	// OpaqueRoot says that the layer hides everything below it. overlayfs does not look for the opaque mark on a layer's
	// root, so whoever mounts must leave the lower layers out.
	OpaqueRoot bool
	// Dropped counts what was left out on purpose.
	Dropped Dropped
}

// Dropped counts parts of the input that are left out of the image on purpose.
type Dropped struct {
	// OverlayXattrs counts trusted.overlay.* and user.overlay.* attributes of a tar, and the bookkeeping ones of an upper directory.
	OverlayXattrs int64
	// WhiteoutDevices counts 0:0 character devices of a tar, which overlayfs would take for whiteouts.
	WhiteoutDevices int64
	// AUFS counts .wh..wh.* entries other than the opaque mark.
	AUFS int64
	// Xattrs counts attributes that Linux has on no disk, or not on that type of inode.
	Xattrs int64
	// NamedACLs counts ACLs that name users or groups without saying their ids.
	NamedACLs int64
}

// ErrLimit is wrapped by errors of inputs that ask for more than Limits allow.
var ErrLimit = tarstream.ErrLimit

// EntryError is an error in one entry of the input.
type EntryError struct {
	// Name is the entry's path as it stands in the input.
	Name string
	// Offset is the position of the entry's header in the uncompressed tar stream, -1 if the input is not a tar.
	Offset int64
	Err    error
}

func (e *EntryError) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("entry %s: %v", quote(e.Name), e.Err)
	}
	return fmt.Sprintf("entry %s at tar offset %d: %v", quote(e.Name), e.Offset, e.Err)
}

// quote quotes a name of the input, of which a message shows the beginning: it may be a megabyte long.
func quote(name string) string {
	const most = 256
	if len(name) <= most {
		return strconv.Quote(name)
	}
	return strconv.Quote(name[:most]) + "..."
}

func (e *EntryError) Unwrap() error { return e.Err }
