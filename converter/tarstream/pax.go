package tarstream

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math"
	"strings"
)

// absent marks a number that no PAX record gave. All of them are at least 0.
const absent = -1

// paxAttributes are the records that may come from a global header.
type paxAttributes struct {
	uid, gid int64
	mtime    Time
	hasMtime bool
}

var noAttributes = paxAttributes{uid: absent, gid: absent}

// paxRecords are the PAX records that apply to one entry.
type paxRecords struct {
	paxAttributes
	path, linkpath        string
	size                  int64
	devmajor, devminor    int64
	aclAccess, aclDefault []byte
	sparse                paxSparse
	xattrs                []Xattr
	xattrIndex            map[string]int // position in xattrs, used once there are many
}

func (p *paxRecords) reset(global paxAttributes) {
	*p = paxRecords{
		paxAttributes: global,
		size:          absent,
		devmajor:      absent,
		devminor:      absent,
		sparse:        p.sparse.emptied(),
		xattrs:        p.xattrs[:0],
	}
}

// readLocal reads a PAX header for the next entry. It replaces one that came before.
func (r *Reader) readLocal() error {
	b, err := r.readPayload(r.meta)
	if err != nil {
		return err
	}
	r.meta = b
	r.pax.reset(r.global)
	r.local = true
	for len(b) > 0 {
		var key, value []byte
		if key, value, b, err = nextRecord(b); err != nil {
			return err
		}
		if err := r.localRecord(key, value); err != nil {
			return err
		}
	}
	return nil
}

// readGlobal reads a PAX header for all later entries.
func (r *Reader) readGlobal() error {
	b, err := r.readPayload(nil)
	if err != nil {
		return err
	}
	for len(b) > 0 {
		var key, value []byte
		if key, value, b, err = nextRecord(b); err != nil {
			return err
		}
		known, err := r.global.set(key, value)
		if err != nil {
			return err
		}
		if !known && onlyLocal(string(key)) {
			return fmt.Errorf("%w: PAX record %q in a global header", ErrHeader, key)
		}
	}
	if !r.local { // otherwise it counts from the next entry on
		r.pax.paxAttributes = r.global
	}
	return nil
}

// onlyLocal reports whether a record makes no sense for all entries.
func onlyLocal(key string) bool {
	switch key {
	case "path", "linkpath", "size", "SCHILY.devmajor", "SCHILY.devminor":
		return true
	}
	for _, p := range []string{"GNU.sparse.", schilyXattr, libarchiveXattr, "SCHILY.acl."} {
		if strings.HasPrefix(key, p) {
			return true
		}
	}
	return false
}

// nextRecord splits the record "length key=value\n" off b.
func nextRecord(b []byte) (key, value, rest []byte, err error) {
	n, digits := 0, 0
	for digits < len(b) && digits < 10 && b[digits] >= '0' && b[digits] <= '9' {
		n = n*10 + int(b[digits]-'0')
		digits++
	}
	if digits == 0 || digits == len(b) || b[digits] != ' ' || n > len(b) || n < digits+len(" k=\n") || b[n-1] != '\n' {
		return nil, nil, nil, fmt.Errorf("%w: bad PAX record %q", ErrHeader, b[:min(len(b), 60)])
	}
	record := b[digits+1 : n-1]
	eq := bytes.IndexByte(record, '=')
	if eq <= 0 || bytes.IndexByte(record[:eq], 0) >= 0 {
		return nil, nil, nil, fmt.Errorf("%w: bad PAX record %q", ErrHeader, b[:min(n, 60)])
	}
	return record[:eq], record[eq+1:], b[n:], nil
}

// set applies a record to the attributes and reports whether it belongs to them.
func (a *paxAttributes) set(key, value []byte) (known bool, err error) {
	switch string(key) {
	case "uid":
		a.uid, err = paxNumber(key, value)
	case "gid":
		a.gid, err = paxNumber(key, value)
	case "mtime":
		if a.hasMtime = len(value) > 0; a.hasMtime {
			a.mtime, err = paxTime(value)
		}
	default:
		return false, nil
	}
	return true, err
}

// localRecord applies one record to r.pax. Unknown records mean nothing to us.
func (r *Reader) localRecord(key, value []byte) error {
	p := &r.pax
	if known, err := p.set(key, value); known {
		return err
	}
	var err error
	switch string(key) {
	case "path":
		if p.path, err = paxName(key, value); err == nil {
			r.name = p.path
		}
	case "linkpath":
		p.linkpath, err = paxName(key, value)
	case "size":
		p.size, err = paxNumber(key, value)
	case "SCHILY.devmajor":
		p.devmajor, err = paxNumber(key, value)
	case "SCHILY.devminor":
		p.devminor, err = paxNumber(key, value)
	case "SCHILY.acl.access":
		p.aclAccess = value
	case "SCHILY.acl.default":
		p.aclDefault = value
	default:
		return r.vendorRecord(key, value)
	}
	return err
}

const (
	schilyXattr     = "SCHILY.xattr."
	libarchiveXattr = "LIBARCHIVE.xattr."
	gnuSparse       = "GNU.sparse."
)

func (r *Reader) vendorRecord(key, value []byte) error {
	if name, ok := bytes.CutPrefix(key, []byte(gnuSparse)); ok {
		return r.pax.sparse.set(key, name, value, r.limits.SparseSegments)
	}
	if name, ok := bytes.CutPrefix(key, []byte(schilyXattr)); ok {
		return r.addXattr(unescapeSchily(name), value)
	}
	name, ok := bytes.CutPrefix(key, []byte(libarchiveXattr))
	if !ok {
		return nil
	}
	name, err := unescapeURL(name)
	if err != nil {
		return fmt.Errorf("%w: PAX record %q: %w", ErrHeader, key, err)
	}
	// libarchive leaves out the padding of base64, and what is decoded fits in the place of the encoded.
	value = bytes.TrimRight(value, "=")
	n, err := base64.RawStdEncoding.Decode(value, value)
	if err != nil {
		return fmt.Errorf("%w: PAX record %q: %w", ErrHeader, key, err)
	}
	return r.addXattr(name, value[:n])
}

func (r *Reader) addXattr(name, value []byte) error {
	if len(name) == 0 || bytes.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("%w: extended attribute with the name %q", ErrHeader, name)
	}
	r.pax.setXattr(r.names.get(name), value)
	return nil
}

// fewXattrs is up to which number of attributes a list is searched faster than a map.
const fewXattrs = 16

// setXattr adds an attribute, or gives the one of that name another value.
func (p *paxRecords) setXattr(name string, value []byte) {
	if i := p.findXattr(name); i >= 0 {
		p.xattrs[i].Value = value
		return
	}
	p.xattrs = append(p.xattrs, Xattr{name, value})
	if len(p.xattrs) <= fewXattrs {
		return
	}
	if p.xattrIndex != nil {
		p.xattrIndex[name] = len(p.xattrs) - 1
		return
	}
	p.xattrIndex = make(map[string]int)
	for i, x := range p.xattrs {
		p.xattrIndex[x.Name] = i
	}
}

func (p *paxRecords) findXattr(name string) int {
	if p.xattrIndex != nil {
		if i, ok := p.xattrIndex[name]; ok {
			return i
		}
		return -1
	}
	for i, x := range p.xattrs {
		if x.Name == name {
			return i
		}
	}
	return -1
}

// interned keeps the names of attributes, which are the same few for most entries.
type interned map[string]string

func (m *interned) get(b []byte) string {
	if s, ok := (*m)[string(b)]; ok {
		return s
	}
	const most = 256
	s := string(b)
	if *m == nil {
		*m = make(interned)
	}
	if len(*m) < most && len(s) <= math.MaxUint8 {
		(*m)[s] = s
	}
	return s
}
