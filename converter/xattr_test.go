package converter

import (
	"archive/tar"
	"bytes"
	"strings"
	"testing"
)

// withXattrs is an archive of one entry of each type with the same attributes.
func withXattrs(t *testing.T, xattrs map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, kind := range map[string]byte{"d": tar.TypeDir, "f": tar.TypeReg, "l": tar.TypeSymlink, "p": tar.TypeFifo} {
		h := &tar.Header{Name: name, Typeflag: kind, PAXRecords: map[string]string{}}
		if kind == tar.TypeSymlink {
			h.Linkname = "f"
		}
		for k, v := range xattrs {
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const acl = "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x07\x00\x05\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"

func TestXattrsByType(t *testing.T) {
	for _, c := range []struct {
		name    string
		dropped int64
	}{
		{"user.a", 2}, {"trusted.a", 0}, {"security.a", 0}, {"system.nfs4_acl", 4}, {"user.", 4},
		{aclAccess, 1}, {aclDefault, 3},
	} {
		r, err := convert(bytes.NewReader(withXattrs(t, map[string]string{c.name: acl})), Limits{})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if r.Dropped.Xattrs != c.dropped {
			t.Errorf("%s: dropped %d times, want %d", c.name, r.Dropped.Xattrs, c.dropped)
		}
	}
}

func TestBadXattrs(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"user." + strings.Repeat("n", 251), "v", "256 bytes"},
		{aclAccess, "garbage", "7 bytes"},
		{aclAccess, "\x03" + acl[1:], "version 2"},
		{aclAccess, acl[:4] + "\x40" + acl[5:], "unknown tag"},
		{aclDefault, acl[:6] + "\x08" + acl[7:], "permissions 0x8"},
	} {
		_, err := convert(bytes.NewReader(withXattrs(t, map[string]string{c.name: c.value})), Limits{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s=%q: error %v, want %q", c.name, c.value, err, c.want)
		}
	}
}

// TestDirectoryXattrs: directories are written last, long after the archive's buffers have been used for other entries.
func TestDirectoryXattrs(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range []string{"a", "b", "c"} {
		err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.xattr.user.me": strings.Repeat(name, 20)}})
		if err != nil {
			t.Fatal(err)
		}
	}
	in := &tarBuild{build: newBuild(Target{Meta: &memFile{}, Data: &memFile{}}, Limits{})}
	if err := in.entries(&b); err != nil {
		t.Fatal(err)
	}
	for name, n := range in.tree.root.children {
		if got := string(n.dir.attr.Xattrs[0].Value); got != strings.Repeat(name, 20) {
			t.Errorf("%s has %q", name, got)
		}
	}
}
