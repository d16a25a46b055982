package tarstream

import (
	"fmt"
	"math"
	"strings"
)

const (
	maxID    = math.MaxUint32 - 1 // the highest value means "no id" to Linux
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
)

// readEntry turns the block in r.blk and the extension headers before it into r.hdr.
func (r *Reader) readEntry() error {
	h := &r.hdr
	*h = Header{Offset: r.start}
	if err := r.setName(h); err != nil {
		return err
	}
	if err := r.setType(h); err != nil {
		return err
	}
	if err := r.setAttributes(h); err != nil {
		return err
	}
	if err := r.setXattrs(h); err != nil {
		return err
	}
	return r.setData(h)
}

func (r *Reader) setName(h *Header) error {
	switch {
	case r.pax.sparse.name != "":
		h.Name = r.pax.sparse.name
	case r.long.name != "":
		h.Name = r.long.name
	case r.pax.path != "":
		h.Name = r.pax.path
	default:
		r.scratch = r.blk.appendName(r.scratch[:0])
		h.Name = string(r.scratch)
	}
	r.name = h.Name
	return nil
}

func (r *Reader) setType(h *Header) error {
	switch t := r.blk[typeAt]; t {
	case '0', '7', 'S':
		h.Type = Regular
	case 0:
		h.Type = Regular
		if strings.HasSuffix(h.Name, "/") {
			h.Type = Directory
		}
	case '1':
		h.Type = HardLink
	case '2':
		h.Type = Symlink
	case '3':
		h.Type = CharDevice
	case '4':
		h.Type = BlockDevice
	case '5', 'D':
		h.Type = Directory
	case '6':
		h.Type = FIFO
	default:
		return fmt.Errorf("%w: entry type %q is not supported", ErrHeader, t)
	}
	if h.Type == HardLink || h.Type == Symlink {
		h.Linkname = r.linkname()
	}
	return nil
}

func (r *Reader) linkname() string {
	switch {
	case r.long.link != "":
		return r.long.link
	case r.pax.linkpath != "":
		return r.pax.linkpath
	default:
		return string(r.blk.text(linkAt, linkLen))
	}
}

// setAttributes sets mode, owner, time and device number.
func (r *Reader) setAttributes(h *Header) error {
	mode, err := r.blk.number("mode", modeAt, shortLen)
	if err != nil {
		return err
	}
	h.Mode = uint32(mode & 07777)
	if h.UID, err = r.bounded("uid", uidAt, r.pax.uid, maxID); err != nil {
		return err
	}
	if h.GID, err = r.bounded("gid", gidAt, r.pax.gid, maxID); err != nil {
		return err
	}
	if r.pax.hasMtime {
		h.ModTime = r.pax.mtime
	} else if h.ModTime.Sec, err = r.blk.number("mtime", mtimeAt, longLen); err != nil {
		return err
	}
	if h.Type != CharDevice && h.Type != BlockDevice {
		return nil
	}
	if h.Devmajor, err = r.device("device major", devmajorAt, r.pax.devmajor, maxMajor); err != nil {
		return err
	}
	h.Devminor, err = r.device("device minor", devminorAt, r.pax.devminor, maxMinor)
	return err
}

func (r *Reader) device(name string, at int, pax, most int64) (uint32, error) {
	if pax == absent && r.blk.format() == formatV7 {
		return 0, nil // v7 has no place for it
	}
	return r.bounded(name, at, pax, most)
}

// bounded returns v, the number of a PAX record, or the one in the header if there is no such record.
func (r *Reader) bounded(name string, at int, v, most int64) (uint32, error) {
	if v == absent {
		var err error
		if v, err = r.blk.number(name, at, shortLen); err != nil {
			return 0, err
		}
	}
	if v < 0 || v > most {
		return 0, fmt.Errorf("%w: %s %d is not in 0 to %d", ErrHeader, name, v, most)
	}
	return uint32(v), nil
}

// setXattrs takes over the attributes of the PAX header. GNU tar sets no ACL on a symbolic link and no default ACL on anything but a
// directory; Linux would refuse both.
func (r *Reader) setXattrs(h *Header) (err error) {
	var access, byDefault int
	if acl := r.pax.aclAccess; len(acl) > 0 && h.Type != Symlink {
		if access, err = r.pax.addACL("system.posix_acl_access", acl); err != nil {
			return err
		}
	}
	if acl := r.pax.aclDefault; len(acl) > 0 && h.Type == Directory {
		if byDefault, err = r.pax.addACL("system.posix_acl_default", acl); err != nil {
			return err
		}
	}
	h.Xattrs, h.NamedACLs = r.pax.xattrs, access+byDefault
	return nil
}

// setData sets the size and prepares for reading the data.
func (r *Reader) setData(h *Header) error {
	size := r.pax.size
	if size == absent {
		var err error
		if size, err = r.blk.number("size", sizeAt, longLen); err != nil {
			return err
		}
	}
	dumpdir := r.blk[typeAt] == 'D'
	if h.Type != Regular && !dumpdir {
		if r.pax.sparse.seen {
			return fmt.Errorf("%w: sparse %s", ErrHeader, h.Type)
		}
		return nil
	}
	if err := r.checkSize(size); err != nil {
		return err
	}
	r.pad = padding(size)
	if dumpdir {
		if err := r.src.skip(size); err != nil {
			return r.truncated(err, "list of a directory")
		}
		return nil
	}
	r.stored = size
	h.Size = size
	return r.setSparse(h)
}
