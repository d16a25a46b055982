package converter

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tarstream"
)

// compareHeaders compares an entry of a tar, whose cleaned name is given, with the record that an index has in its place. Differences that no
// writer of an index can avoid are none; see sameTime and compareXattrs.
func compareHeaders(name string, h, record *tarstream.Header) error {
	target := h.Linkname
	if h.Type == tarstream.HardLink {
		path, err := splitPath(target)
		if err != nil {
			return fmt.Errorf("hard link to %s: %w", quote(target), err)
		}
		target = strings.Join(path, "/")
	}
	for _, field := range []struct {
		name      string
		same      bool
		tar, here any
	}{
		{"name", name == record.Name, quote(name), quote(record.Name)},
		{"type", h.Type == record.Type, h.Type, record.Type},
		{"size", h.Size == record.Size, h.Size, record.Size},
		{"link target", target == record.Linkname, quote(target), quote(record.Linkname)},
		{"mode", h.Mode == record.Mode, fmt.Sprintf("%04o", h.Mode), fmt.Sprintf("%04o", record.Mode)},
		{"uid", h.UID == record.UID, h.UID, record.UID},
		{"gid", h.GID == record.GID, h.GID, record.GID},
		{"device major", h.Devmajor == record.Devmajor, h.Devmajor, record.Devmajor},
		{"device minor", h.Devminor == record.Devminor, h.Devminor, record.Devminor},
		{"modification time", sameTime(h.ModTime, record.ModTime), formatTime(h.ModTime), formatTime(record.ModTime)},
	} {
		if !field.same {
			return fmt.Errorf("%w: %s %v, in the index %v", ErrMismatch, field.name, field.tar, field.here)
		}
	}
	return compareXattrs(h.Xattrs, record.Xattrs)
}

// sameTime compares a time with that of an index, which may be rounded to the second, halves up: eStargz and the TOC of stargz's
// zstd:chunked have no fractions.
func sameTime(tar, index tarstream.Time) bool {
	rounded := tarstream.Time{Sec: tar.Sec}
	if tar.Nsec >= 5e8 {
		rounded.Sec++
	}
	return tar == index || rounded == index
}

func formatTime(t tarstream.Time) string { return fmt.Sprintf("%d.%09d", t.Sec, t.Nsec) }

// compareXattrs compares extended attributes. ACLs may be missing in the index: no writer makes attributes of those that a tar has in
// text form.
func compareXattrs(tar, index []tarstream.Xattr) error {
	byName := func(a, b tarstream.Xattr) int { return cmp.Compare(a.Name, b.Name) }
	tar = slices.SortedFunc(slices.Values(tar), byName)
	for len(tar) > 0 || len(index) > 0 {
		switch {
		case len(tar) == 0 || len(index) > 0 && index[0].Name < tar[0].Name:
			return fmt.Errorf("%w: extended attribute %s is only in the index", ErrMismatch, quote(index[0].Name))
		case len(index) == 0 || tar[0].Name < index[0].Name:
			if name := tar[0].Name; name != aclAccess && name != aclDefault {
				return fmt.Errorf("%w: extended attribute %s is not in the index", ErrMismatch, quote(name))
			}
			tar = tar[1:]
		case !bytes.Equal(tar[0].Value, index[0].Value):
			return fmt.Errorf("%w: extended attribute %s has another value in the index", ErrMismatch, quote(tar[0].Name))
		default:
			tar, index = tar[1:], index[1:]
		}
	}
	return nil
}

// tarData reads the data of a tar entry from the front, holes included.
type tarData struct {
	in       *tarstream.Reader
	dense    bool                // all is stored
	segments []tarstream.Segment // otherwise: what is
	at       int64
}

// run returns how many of the next bytes, up to most, are stored or are not, whichever comes first.
func (d *tarData) run(most int64) (n int64, stored bool) {
	if d.dense {
		return most, true
	}
	for len(d.segments) > 0 && d.segments[0].Offset+d.segments[0].Length <= d.at {
		d.segments = d.segments[1:]
	}
	switch {
	case len(d.segments) == 0:
		return most, false
	case d.at < d.segments[0].Offset:
		return min(most, d.segments[0].Offset-d.at), false
	}
	return min(most, d.segments[0].Offset+d.segments[0].Length-d.at), true
}

// read fills b with the next bytes.
func (d *tarData) read(b []byte) error {
	for len(b) > 0 {
		n, stored := d.run(int64(len(b)))
		if !stored {
			clear(b[:n])
		} else if _, err := io.ReadFull(d.in, b[:n]); err != nil {
			return err
		}
		d.at += n
		b = b[n:]
	}
	return nil
}

// zeros expects the next n bytes to be zeros.
func (d *tarData) zeros(n int64) error {
	var b [4096]byte
	for n > 0 {
		length, stored := d.run(n)
		if stored {
			length = min(length, int64(len(b)))
			if _, err := io.ReadFull(d.in, b[:length]); err != nil {
				return err
			}
			if rest := bytes.TrimLeft(b[:length], "\x00"); len(rest) > 0 {
				return fmt.Errorf("%w: byte %d of the file is %#x in the tar", ErrMismatch, d.at+length-int64(len(rest)), rest[0])
			}
		}
		d.at += length
		n -= length
	}
	return nil
}
