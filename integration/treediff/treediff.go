// Package treediff says whether two directory trees are the same, down to what a stat, an xattr and a read can tell.
//
// Scan turns a tree into records, one for each path, sorted bytewise by path; Compare names every field in which two such lists
// differ. The trees may lie on different filesystems, so nothing that a filesystem is free to choose is recorded: no inode
// numbers, no allocated blocks, and of directories neither size nor link count.
//
//	want, err := treediff.Scan(ctx, extracted)
//	got, err := treediff.Scan(ctx, mounted)
//	for _, d := range treediff.Compare(want, got) { t.Error(d) }
//
// Scan never follows a symlink and works relative to directory descriptors, so a path may be longer than PATH_MAX. It needs root
// to see trusted.* attributes and to read everything. The tree must not change meanwhile.
package treediff

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
)

// Type is a file type.
type Type string

// The file types of Linux.
const (
	File      Type = "file"
	Directory Type = "directory"
	Symlink   Type = "symlink"
	Character Type = "character device"
	Block     Type = "block device"
	FIFO      Type = "fifo"
	Socket    Type = "socket"
)

// Time is a modification time. Its range is that of the kernel; int64 nanoseconds would end in the year 2262.
type Time struct{ Sec, Nsec int64 }

func (t Time) String() string { return fmt.Sprintf("%d.%09d", t.Sec, t.Nsec) }

// Record is all that one path of a tree shows.
type Record struct {
	// Path is relative to the root of the tree, which is ".".
	Path     string
	Type     Type
	Mode     uint32 // permission, set-id and sticky bits
	UID, GID uint32
	Mtime    Time
	// Xattrs holds the attributes of all namespaces, the ACLs in system.posix_acl_* among them.
	Xattrs map[string]string
	// Rdev is the kernel's number of a device, 0 otherwise.
	Rdev uint64
	// Size and Nlink are 0 for directories.
	Size  int64
	Nlink uint64
	// Content is the digest of a regular file's contents. See contentDigest.
	Content string
	// Target is where a symlink points.
	Target string
	// FirstLink is the smallest path of the same inode when the tree has several, and empty otherwise. Two trees whose
	// FirstLinks agree have the same hard links.
	FirstLink string
}

// Field names one comparable part of a Record.
type Field string

// The fields that Compare looks at. FieldPath stands for a path that only one of the trees has.
const (
	FieldPath    Field = "path"
	FieldType    Field = "type"
	FieldMode    Field = "mode"
	FieldUID     Field = "uid"
	FieldGID     Field = "gid"
	FieldMtime   Field = "mtime"
	FieldXattr   Field = "xattr"
	FieldRdev    Field = "rdev"
	FieldSize    Field = "size"
	FieldNlink   Field = "nlink"
	FieldContent Field = "content"
	FieldTarget  Field = "target"
	FieldLinks   Field = "links"
)

// Difference is one field of one path in which two trees differ.
type Difference struct {
	Path  string
	Field Field
	// Xattr is the attribute's name when Field is FieldXattr.
	Xattr string
	// Want and Got are the values of the first and the second tree.
	Want, Got string
}

func (d Difference) String() string {
	field := string(d.Field)
	if d.Xattr != "" {
		field += " " + d.Xattr
	}
	return fmt.Sprintf("%q: %s: want %s, got %s", d.Path, field, shorten(d.Want), shorten(d.Got))
}

// shorten keeps a message readable when a value is a large attribute.
func shorten(s string) string {
	const most = 200
	if len(s) <= most {
		return s
	}
	return fmt.Sprintf("%s... (%d bytes)", s[:most], len(s))
}

const (
	absent  = "absent"
	present = "present"
)

// Compare returns every difference between two scanned trees, sorted by path. Fields named in ignore are not looked at.
func Compare(want, got []Record, ignore ...Field) []Difference {
	c := comparison{ignore: ignore}
	for len(want) > 0 || len(got) > 0 {
		switch order(want, got) {
		case -1:
			c.add(want[0].Path, FieldPath, present, absent)
			want = want[1:]
		case 1:
			c.add(got[0].Path, FieldPath, absent, present)
			got = got[1:]
		default:
			c.compare(want[0], got[0])
			want, got = want[1:], got[1:]
		}
	}
	return c.found
}

// order says which list has the smaller path at its front; an empty list is larger than everything.
func order(a, b []Record) int {
	switch {
	case len(a) == 0:
		return 1
	case len(b) == 0:
		return -1
	}
	return cmp.Compare(a[0].Path, b[0].Path)
}

type comparison struct {
	ignore []Field
	found  []Difference
}

func (c *comparison) compare(want, got Record) {
	fields := []struct {
		field     Field
		want, got string
	}{
		{FieldType, string(want.Type), string(got.Type)},
		{FieldMode, octal(want.Mode), octal(got.Mode)},
		{FieldUID, decimal(want.UID), decimal(got.UID)},
		{FieldGID, decimal(want.GID), decimal(got.GID)},
		{FieldMtime, want.Mtime.String(), got.Mtime.String()},
		{FieldRdev, device(want.Rdev), device(got.Rdev)},
		{FieldSize, decimal(want.Size), decimal(got.Size)},
		{FieldNlink, decimal(want.Nlink), decimal(got.Nlink)},
		{FieldContent, want.Content, got.Content},
		{FieldTarget, strconv.Quote(want.Target), strconv.Quote(got.Target)},
		{FieldLinks, strconv.Quote(want.FirstLink), strconv.Quote(got.FirstLink)},
	}
	for _, f := range fields {
		c.add(want.Path, f.field, f.want, f.got)
	}
	c.compareXattrs(want, got)
}

func (c *comparison) compareXattrs(want, got Record) {
	names := make(map[string]bool, len(want.Xattrs)+len(got.Xattrs))
	for n := range want.Xattrs {
		names[n] = true
	}
	for n := range got.Xattrs {
		names[n] = true
	}
	sorted := make([]string, 0, len(names))
	for n := range names {
		sorted = append(sorted, n)
	}
	slices.Sort(sorted)
	for _, n := range sorted {
		before := len(c.found)
		c.add(want.Path, FieldXattr, attribute(want.Xattrs, n), attribute(got.Xattrs, n))
		if len(c.found) > before {
			c.found[before].Xattr = n
		}
	}
}

func (c *comparison) add(path string, f Field, want, got string) {
	if want == got || slices.Contains(c.ignore, f) {
		return
	}
	c.found = append(c.found, Difference{Path: path, Field: f, Want: want, Got: got})
}

func attribute(xattrs map[string]string, name string) string {
	v, ok := xattrs[name]
	if !ok {
		return absent
	}
	return strconv.Quote(v)
}

func octal(mode uint32) string { return fmt.Sprintf("%04o", mode) }

func decimal[T ~uint32 | ~uint64 | ~int64](n T) string { return fmt.Sprint(n) }
