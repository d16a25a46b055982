package tartest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
)

// File describes an entry of a proper archive, and the file it becomes.
type File struct {
	// Why says what the entry is there for.
	Why string
	// Name is the name in the archive. Directories end in a slash.
	Name, Linkname string
	// Type is the type of the header: '0' to '6'.
	Type               byte
	Mode               uint32
	UID, GID           uint32
	Sec                int64
	Nsec               uint32
	Devmajor, Devminor uint32
	Data               []byte
	// Xattrs are the attributes the file has in the end.
	Xattrs []Xattr
	// ACLAccess and ACLDefault, if set, are the texts from which the archive gives the last attributes of Xattrs.
	ACLAccess, ACLDefault string
}

// Xattr is an extended attribute.
type Xattr struct {
	Name, Value string
}

// Pack makes an archive of the files: ustar headers, with PAX records for what does not fit them.
func Pack(files []File) []byte {
	var b Builder
	for _, f := range files {
		b.File(f)
	}
	return b.End()
}

// File writes one file.
func (b *Builder) File(f File) {
	h := Header{Name: f.Name, Linkname: f.Linkname, Type: f.Type, Mode: int64(f.Mode), UID: int64(f.UID), GID: int64(f.GID), ModTime: f.Sec,
		Devmajor: int64(f.Devmajor), Devminor: int64(f.Devminor)}
	if records := f.records(); len(records) > 0 {
		b.PAX(records...)
		h = h.clipped()
	}
	b.Entry(h, f.Data)
}

// records returns the PAX records that the file needs.
func (f File) records() []string {
	var r []string
	if len(f.Name) > 100 {
		r = append(r, "path", f.Name)
	}
	if len(f.Linkname) > 100 {
		r = append(r, "linkpath", f.Linkname)
	}
	if f.UID > maxOctal7 {
		r = append(r, "uid", fmt.Sprint(f.UID))
	}
	if f.GID > maxOctal7 {
		r = append(r, "gid", fmt.Sprint(f.GID))
	}
	if f.Nsec > 0 || f.Sec < 0 || f.Sec > maxOctal11 {
		r = append(r, "mtime", decimalTime(f.Sec, f.Nsec))
	}
	if f.ACLAccess != "" {
		r = append(r, "SCHILY.acl.access", f.ACLAccess)
	}
	if f.ACLDefault != "" {
		r = append(r, "SCHILY.acl.default", f.ACLDefault)
	}
	for _, x := range f.Xattrs {
		if f.ACLAccess != "" && x.Name == "system.posix_acl_access" || f.ACLDefault != "" && x.Name == "system.posix_acl_default" {
			continue
		}
		r = append(r, "SCHILY.xattr."+x.Name, x.Value)
	}
	return r
}

const (
	maxOctal7  = 1<<21 - 1
	maxOctal11 = 1<<33 - 1
)

// clipped returns the header without what only PAX records can say.
func (h Header) clipped() Header {
	h.Name = h.Name[:min(len(h.Name), 100)]
	h.Linkname = h.Linkname[:min(len(h.Linkname), 100)]
	if h.UID > maxOctal7 {
		h.UID = 0
	}
	if h.GID > maxOctal7 {
		h.GID = 0
	}
	if h.ModTime < 0 || h.ModTime > maxOctal11 {
		h.ModTime = 0
	}
	return h
}

// decimalTime writes a time as PAX does: sign and magnitude.
func decimalTime(sec int64, nsec uint32) string {
	if sec < 0 && nsec > 0 {
		return fmt.Sprintf("-%d.%09d", -(sec + 1), 1e9-int64(nsec))
	}
	return fmt.Sprintf("%d.%09d", sec, nsec)
}

// Pattern returns n bytes that look random and are the same each time.
func Pattern(n int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, uint64(n)))
	b := make([]byte, n+7)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
	return b[:n]
}
