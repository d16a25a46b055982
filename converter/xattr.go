package converter

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/erofs"
)

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"

	maxXattrNameBytes = 255 // XATTR_NAME_MAX, with the namespace
)

// isOverlayXattr says whether overlayfs takes the attribute for its own.
func isOverlayXattr(name string) bool {
	return strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.")
}

// addXattr gives a an attribute, of which the value is copied. What Linux never has on an inode of that type is left out and
// counted; what it would refuse to read is an error.
func (b *build) addXattr(a *erofs.Attr, name string, value []byte) error {
	kind := a.Mode & erofs.ModeType
	switch {
	case len(name) > maxXattrNameBytes:
		return fmt.Errorf("extended attribute %s: name of %d bytes, Linux allows %d", quote(name), len(name), maxXattrNameBytes)
	case !erofs.HasNamespace(name),
		// xattr_permission() in fs/xattr.c
		strings.HasPrefix(name, "user.") && kind != erofs.ModeRegular && kind != erofs.ModeDir,
		name == aclAccess && kind == erofs.ModeSymlink,
		name == aclDefault && kind != erofs.ModeDir:
		b.dropped.Xattrs++
		return nil
	case name == aclAccess || name == aclDefault:
		if err := checkACL(value); err != nil {
			return fmt.Errorf("extended attribute %s: %w", name, err)
		}
	}
	a.Xattrs = append(a.Xattrs, erofs.Xattr{Name: name, Value: bytes.Clone(value)})
	if kind == erofs.ModeDir {
		return b.keep(len(name) + len(value))
	}
	return nil
}

// checkACL checks the form that include/uapi/linux/posix_acl_xattr.h describes: version 2, then entries of a 16-bit tag, 16-bit
// permissions and a 32-bit id.
func checkACL(value []byte) error {
	le := binary.LittleEndian
	if len(value) < 4 || len(value)%8 != 4 || le.Uint32(value) != 2 {
		return fmt.Errorf("%d bytes that are not an access control list of version 2", len(value))
	}
	for e := value[4:]; len(e) > 0; e = e[8:] {
		switch tag, perm := le.Uint16(e), le.Uint16(e[2:]); {
		case perm > 7:
			return fmt.Errorf("permissions %#x in an access control list", perm)
		case tag == 0x01, tag == 0x02, tag == 0x04, tag == 0x08, tag == 0x10, tag == 0x20:
		default:
			return fmt.Errorf("unknown tag %#x in an access control list", tag)
		}
	}
	return nil
}
