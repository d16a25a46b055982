// Package tarstream reads tar archives the way image layers contain them: one forward pass over a stream, entry by entry.
//
// Unlike archive/tar it tells where each entry starts, it gives the data map of sparse files instead of filling their holes
// with zeros, it delivers extended attributes with empty values and POSIX ACLs, and it allocates nothing per entry but the
// strings of the header. It knows v7, ustar, star, PAX and GNU headers:
//
//	names      ustar prefix, PAX path and linkpath, GNU long name 'L' and long link 'K'
//	numbers    octal, GNU base-256, PAX decimal
//	sparse     old GNU 'S' with extension blocks, PAX GNU.sparse 0.0, 0.1 and 1.0
//	xattrs     SCHILY.xattr.*, LIBARCHIVE.xattr.*, and SCHILY.acl.* as the binary attribute Linux stores
//	types      '0' '7' 'S' regular file, and NUL, which is a directory if the name ends in '/'; '1' hard link; '2' symbolic link;
//	           '3' '4' devices; '5' and 'D' (GNU dumpdir, its list is skipped) directory; '6' FIFO; 'V' (volume label) is skipped
//
// Every other type is an error that names it, among them 'M' (rest of a file of another volume) and 'N' (GNU tar before 1990).
//
// Where formats leave room, the reader does what archive/tar does, because that is what other container tools use: a GNU long name wins
// over a PAX path, the last of several PAX headers before an entry replaces the others, links and directories have no data
// whatever their size says, data segments of a sparse file are stored without padding between them. It differs in these points:
//
//   - Global PAX headers set uid, gid and mtime of all later entries, as POSIX says. What would be nonsense for all entries
//     (path, size, sparse maps, attributes) is an error there.
//   - An empty PAX value deletes the record, but an empty SCHILY.xattr or LIBARCHIVE.xattr is an attribute with an empty value.
//   - "%3D" and "%25" in the name of a SCHILY.xattr stand for "=" and "%", as GNU tar writes them.
//   - Ids, device numbers and sizes out of Linux's range, a name with a NUL in it, an incomplete sparse map, a sparse map that does
//     not cover the stored data exactly, and an extension header without an entry are errors.
//
// The archive ends with two zero blocks, with one zero block at the end of the stream, or with the stream at a header boundary
// (the padding of the last entry may be missing). So an archive that was cut there looks complete: whoever needs to know
// compares a digest of the stream. After the end the reader reads no further; it may already have read ahead, and the caller
// drains the rest from the stream it gave.
//
// The reader does not judge names: "..", absolute and empty names are the caller's business, as are lengths of names and
// of attributes. Its memory is bounded by Limits whatever the input says.
package tarstream

import (
	"errors"
	"fmt"
)

// Type is what kind of file an entry describes.
type Type byte

// The types of entries.
const (
	Regular Type = iota
	HardLink
	Symlink
	CharDevice
	BlockDevice
	Directory
	FIFO
)

var typeNames = [...]string{"regular file", "hard link", "symbolic link", "character device", "block device", "directory", "FIFO"}

func (t Type) String() string {
	if int(t) < len(typeNames) {
		return typeNames[t]
	}
	return fmt.Sprintf("type %d", byte(t))
}

// Segment is a range of a sparse file that has stored data.
type Segment struct {
	// Offset is the position in the file, Length the number of bytes.
	Offset, Length int64
}

// Time is a modification time: Sec seconds (negative before 1970) plus Nsec nanoseconds (0 to 999999999).
type Time struct {
	Sec  int64
	Nsec uint32
}

// Xattr is an extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// Header describes one entry. It belongs to the Reader and is valid until the next call of Next; strings may be kept, slices not.
type Header struct {
	// Name is the path as the archive has it, not cleaned.
	Name string
	// Linkname is the target of a hard or symbolic link.
	Linkname string
	Type     Type
	// Size is the length of a regular file, holes included. It is 0 for every other type.
	Size int64
	// Sparse lists the data of a file with holes: sorted, not overlapping, not empty, within Size. It is nil for a file without
	// holes, and empty but not nil for a file that is nothing but a hole.
	Sparse []Segment
	// Mode has the permission bits and set-user-id, set-group-id and sticky (07777).
	Mode     uint32
	UID, GID uint32
	ModTime  Time
	// Devmajor (12 bits) and Devminor (20 bits) are those of a device.
	Devmajor, Devminor uint32
	// Xattrs are in order of appearance, each name once.
	Xattrs []Xattr
	// NamedACLs counts the ACLs in text form that were left out because they name users or groups without their ids, as GNU
	// tar writes them. Names mean nothing outside of the system that the archive was made on.
	NamedACLs int
	// Offset is the position in the stream of the first block that belongs to the entry, PAX and GNU headers included.
	Offset int64
}

// Limits bound what an archive may ask for. A zero field takes the default.
type Limits struct {
	// MetadataBytes is the largest payload of one extension header (PAX records, GNU long name). Default 1 MiB, as in archive/tar
	// and libarchive: an EROFS inode holds at most 256 KiB of attributes, bsdtar writes each of them twice, once in base64,
	// and that is 600 KiB.
	MetadataBytes int64
	// SparseSegments is the largest number of segments in the map of one sparse file. Default 1 Mi, 16 MiB of memory.
	SparseSegments int
	// FileBytes is the largest size a file may declare, holes included. Default 2 TiB.
	FileBytes int64
}

// The defaults of Limits.
const (
	defaultMetadataBytes  = 1 << 20
	defaultSparseSegments = 1 << 20
	defaultFileBytes      = 2 << 40
)

func (l Limits) withDefaults() Limits {
	if l.MetadataBytes == 0 {
		l.MetadataBytes = defaultMetadataBytes
	}
	if l.SparseSegments == 0 {
		l.SparseSegments = defaultSparseSegments
	}
	if l.FileBytes == 0 {
		l.FileBytes = defaultFileBytes
	}
	return l
}

var (
	// ErrHeader is wrapped by errors about headers that are corrupt or mean nothing to this package.
	ErrHeader = errors.New("invalid tar header")
	// ErrLimit is wrapped by errors about archives that ask for more than Limits allow.
	ErrLimit = errors.New("limit exceeded")
)
