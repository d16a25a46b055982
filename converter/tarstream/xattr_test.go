package tarstream

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
)

func xattrsOf(t *testing.T, typ byte, records ...string) ([]Xattr, error) {
	t.Helper()
	got, err := readAll(bytes.NewReader(build(func(b *tartest.Builder) {
		b.PAX(records...)
		b.Header(tartest.Header{Name: "f", Linkname: "x", Type: typ})
	})), Limits{})
	if err != nil {
		return nil, err
	}
	return got[0].Xattrs, nil
}

func TestXattrs(t *testing.T) {
	const s, l = "SCHILY.xattr.", "LIBARCHIVE.xattr."
	for name, tt := range map[string]struct {
		records []string
		want    []Xattr
	}{
		"order of appearance": {[]string{s + "user.b", "1", s + "user.a", "2"}, []Xattr{{"user.b", []byte("1")}, {"user.a", []byte("2")}}},
		"last value wins":     {[]string{s + "user.a", "1", s + "user.b", "2", s + "user.a", "3"}, []Xattr{{"user.a", []byte("3")}, {"user.b", []byte("2")}}},
		"empty value":         {[]string{s + "user.a", ""}, []Xattr{{"user.a", nil}}},
		"binary value":        {[]string{s + "user.a", "\x00=\n\xff"}, []Xattr{{"user.a", []byte("\x00=\n\xff")}}},
		"escapes of GNU tar":  {[]string{s + "user.a%3Db%25%3d%3", "v"}, []Xattr{{"user.a=b%%3d%3", []byte("v")}}},
		"LIBARCHIVE":          {[]string{l + "user.a%3d%2Fb", "AAH/"}, []Xattr{{"user.a=/b", []byte("\x00\x01\xff")}}},
		"no padding":          {[]string{l + "user.a", "YQ"}, []Xattr{{"user.a", []byte("a")}}},
		"padding":             {[]string{l + "user.a", "YQ=="}, []Xattr{{"user.a", []byte("a")}}},
		"LIBARCHIVE empty":    {[]string{l + "user.a", ""}, []Xattr{{"user.a", nil}}},
		"both":                {[]string{l + "user.a", "YQ", s + "user.a", "a"}, []Xattr{{"user.a", []byte("a")}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := xattrsOf(t, '0', tt.records...)
			for i := range got {
				if len(got[i].Value) == 0 {
					got[i].Value = nil
				}
			}
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

// TestManyXattrs has each name twice, the second time with another value.
func TestManyXattrs(t *testing.T) {
	for _, n := range []int{fewXattrs - 1, fewXattrs, fewXattrs + 1, fewXattrs + 2, 20000} {
		var records []string
		for i := range 2 * n {
			records = append(records, fmt.Sprintf("SCHILY.xattr.user.%d", i%n), fmt.Sprint(i))
		}
		archive := build(func(b *tartest.Builder) {
			for range 2 { // the second entry reuses the memory of the first
				b.PAX(records...)
				b.Entry(regular("f"), nil)
			}
			b.Entry(regular("bare"), nil)
		})
		got, err := readAll(bytes.NewReader(archive), Limits{MetadataBytes: 4 << 20})
		if err != nil || len(got) != 3 || len(got[2].Xattrs) != 0 {
			t.Fatalf("%d names: %d entries, %v", n, len(got), err)
		}
		for _, e := range got[:2] {
			if len(e.Xattrs) != n {
				t.Fatalf("%d names: got %d", n, len(e.Xattrs))
			}
			for i, x := range e.Xattrs {
				if x.Name != fmt.Sprintf("user.%d", i) || string(x.Value) != fmt.Sprint(n+i) {
					t.Fatalf("%d names: attribute %d is %s=%s", n, i, x.Name, x.Value)
				}
			}
		}
	}
}

const (
	aclText   = "user::rw-\nuser:1000:r-x\t#effective:r--\ngroup::r--\nmask::r-x\nother::---\n"
	aclBinary = "\x02\x00\x00\x00" +
		"\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x05\x00\xe8\x03\x00\x00" + "\x04\x00\x04\x00\xff\xff\xff\xff" +
		"\x10\x00\x05\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
)

func TestACL(t *testing.T) {
	const access, byDefault = "SCHILY.acl.access", "SCHILY.acl.default"
	acl := []Xattr{{"system.posix_acl_access", []byte(aclBinary)}}
	for name, tt := range map[string]struct {
		typ     byte
		records []string
		want    []Xattr
	}{
		"lines":                 {'0', []string{access, aclText}, acl},
		"commas, short, sorted": {'0', []string{access, "o::-,m::rx,g::r,u:1000:rx,u::rw"}, acl},
		"star":                  {'0', []string{access, "user::rw-,user:joe:r-x:1000,group::r--,mask::r-x,other::---"}, acl},
		"directory": {'5', []string{access, aclText, byDefault, aclText},
			[]Xattr{{"system.posix_acl_access", []byte(aclBinary)}, {"system.posix_acl_default", []byte(aclBinary)}}},
		"default of a file":       {'0', []string{byDefault, aclText}, nil},
		"symbolic link":           {'2', []string{access, aclText}, nil},
		"somebody's name":         {'0', []string{access, "u::rw,u:joe:r,g::r,m::r,o::r"}, nil},
		"no id in fourth field":   {'0', []string{access, "u::rw,u:joe:r:jane,g::r,m::r,o::r"}, nil},
		"minimal access ACL":      {'5', []string{access, "user::rwx,group::r-x,other::r-x"}, nil},
		"minimal default ACL":     {'5', []string{byDefault, "u::-,g::-,o::-"}, []Xattr{{"system.posix_acl_default", []byte(minimalBinary)}}},
		"deleted":                 {'0', []string{access, aclText, access, ""}, nil},
		"replaces the attribute":  {'0', []string{access, aclText, "SCHILY.xattr.system.posix_acl_access", "x"}, acl},
		"as an attribute already": {'0', []string{"SCHILY.xattr.system.posix_acl_access", aclBinary}, acl},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := xattrsOf(t, tt.typ, tt.records...)
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

const minimalBinary = "\x02\x00\x00\x00" +
	"\x01\x00\x00\x00\xff\xff\xff\xff" + "\x04\x00\x00\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"

func TestACLErrors(t *testing.T) {
	for text, part := range map[string]string{
		"u::rw,g:4294967295:r,g::r,m::r,o::r": "4294967295",
		"u::rw,g::r":                          "one entry each",
		"u::rw,u::r,g::r,o::r":                "same id",
		"u::rw,u:1:r,g::r,o::r":               "no mask",
		"u::rw,u:1:r,u:1:w,g::r,m::r,o::r":    "same id",
		"u::rwz,g::r,o::r":                    `"rwz"`,
		"u::rw,g::r,o:5:r":                    "qualifier",
		"u::rw,g::r,x::r":                     "unknown tag",
		"default:user::rw,g::r,o::r":          "unknown tag",
		"u:rw":                                "tag:qualifier:permissions",
		"u:1:2:3:4":                           "tag:qualifier:permissions",
		strings.Repeat("u:1:r,", 3) + "u::r":  "same id",
		"everyone@:rwxp:allow":                "unknown tag",
		"u::rw,g::r,m::r,m::w,o::r":           "same id",
	} {
		if got, err := xattrsOf(t, '0', "SCHILY.acl.access", text); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: got %q, %v", text, got, err)
		}
	}
}
