package erofs

import (
	"fmt"
	"slices"
	"strings"
)

// Xattr is an extended attribute with its full name.
type Xattr struct {
	Name  string
	Value []byte
}

// xattrNamespaces are the name prefixes that EROFS knows (fs/erofs/xattr.h), the longest first where one contains another.
var xattrNamespaces = []struct {
	prefix string
	index  uint8
	whole  bool // the prefix is the whole name
}{
	{"user.", 1, false},
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"trusted.", 4, false},
	{"security.", 6, false},
}

// HasNamespace says whether EROFS can store an attribute of that name.
func HasNamespace(name string) bool {
	_, _, ok := splitXattr(name)
	return ok
}

func splitXattr(name string) (index uint8, suffix string, ok bool) {
	for _, ns := range xattrNamespaces {
		if rest, found := strings.CutPrefix(name, ns.prefix); found && ns.whole == (rest == "") {
			return ns.index, rest, true
		}
	}
	return 0, "", false
}

// xattrBody is the attribute area behind an inode.
type xattrBody struct {
	bytes []byte // nil: no attributes
	count uint16 // i_xattr_icount
}

const (
	maxXattrBody  = xattrHeaderBytes + 4*(1<<16-2) // what the 16 bits of i_xattr_icount can say
	maxXattrValue = 1<<16 - 1                      // the 16 bits of e_value_size; Linux allows one byte more
	maxXattrName  = 255
)

// encodeXattrs makes the attribute area with all attributes inline, in the order of their names.
func encodeXattrs(xattrs []Xattr) (xattrBody, error) {
	if len(xattrs) == 0 {
		return xattrBody{}, nil
	}
	body := make([]byte, xattrHeaderBytes, 256)
	for _, x := range sortedXattrs(xattrs) {
		var err error
		if body, err = appendXattr(body, x); err != nil {
			return xattrBody{}, err
		}
	}
	if len(body) > maxXattrBody {
		return xattrBody{}, fmt.Errorf("%w: %d bytes of extended attributes, at most %d fit an inode", ErrTooLarge, len(body), maxXattrBody)
	}
	return xattrBody{body, uint16((len(body)-xattrHeaderBytes)/4 + 1)}, nil
}

func sortedXattrs(xattrs []Xattr) []Xattr {
	s := slices.Clone(xattrs)
	slices.SortFunc(s, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return s
}

// appendXattr appends one struct erofs_xattr_entry, padded to 4 bytes.
func appendXattr(b []byte, x Xattr) ([]byte, error) {
	index, suffix, ok := splitXattr(x.Name)
	switch {
	case !ok:
		return nil, fmt.Errorf("extended attribute %q: EROFS has no such namespace", x.Name)
	case len(suffix) > maxXattrName:
		return nil, fmt.Errorf("%w: name of extended attribute %q has %d bytes", ErrTooLarge, x.Name, len(suffix))
	case len(x.Value) > maxXattrValue:
		return nil, fmt.Errorf("%w: value of extended attribute %q has %d bytes, at most %d can be stored", ErrTooLarge, x.Name, len(x.Value), maxXattrValue)
	}
	b = append(b, uint8(len(suffix)), index)
	b = le.AppendUint16(b, uint16(len(x.Value)))
	b = append(b, suffix...)
	b = append(b, x.Value...)
	return append(b, make([]byte, alignUp(len(b), 4)-len(b))...), nil
}

// encodeSharedXattrs puts the attributes into the shared area, to be written at a block boundary, and makes the inode's body of
// references into it. Only the root needs that, when its attributes do not fit into block 0.
func encodeSharedXattrs(xattrs []Xattr) (body xattrBody, shared []byte, err error) {
	if len(xattrs) > 255 {
		return xattrBody{}, nil, fmt.Errorf("%w: %d extended attributes on the root directory", ErrTooLarge, len(xattrs))
	}
	b := make([]byte, xattrHeaderBytes, xattrHeaderBytes+4*len(xattrs))
	b[4] = uint8(len(xattrs))
	for _, x := range sortedXattrs(xattrs) {
		b = le.AppendUint32(b, uint32(len(shared)/4))
		if shared, err = appendXattr(shared, x); err != nil {
			return xattrBody{}, nil, err
		}
	}
	return xattrBody{b, uint16(len(xattrs) + 1)}, shared, nil
}
