package converter

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/erofs"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tarstream"
)

// memFile is an erofs.File in memory that refuses to become large.
type memFile struct{ b []byte }

const memFileMax = 64 << 20

func (m *memFile) WriteAt(b []byte, off int64) (int, error) {
	need := off + int64(len(b))
	if need > memFileMax {
		return 0, errors.New("test file too large")
	}
	if need > int64(len(m.b)) {
		m.b = append(m.b, make([]byte, need-int64(len(m.b)))...)
	}
	return copy(m.b[off:], b), nil
}

func (m *memFile) Truncate(n int64) error {
	if n <= memFileMax {
		m.b = append(m.b, make([]byte, max(0, n-int64(len(m.b))))...)[:n]
	}
	return nil
}

// archive makes a tar of short descriptions: "d name", "f name contents", "h name target", "l name target", "c name".
func archive(t testing.TB, lines ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, l := range lines {
		kind, rest, _ := strings.Cut(l, " ")
		name, arg, _ := strings.Cut(rest, " ")
		h := &tar.Header{Name: name, Mode: 0o644}
		switch kind {
		case "d":
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		case "f":
			h.Typeflag, h.Size = tar.TypeReg, int64(len(arg))
		case "h":
			h.Typeflag, h.Linkname = tar.TypeLink, arg
		case "l":
			h.Typeflag, h.Linkname = tar.TypeSymlink, arg
		case "c":
			h.Typeflag = tar.TypeChar
		case "x":
			h.Typeflag, h.Mode = tar.TypeDir, 0o700
			h.PAXRecords = map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "z", "SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.user.kept": "v"}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if kind == "f" {
			if _, err := io.WriteString(w, arg); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func convert(r io.Reader, l Limits) (Result, error) {
	return FromTar(context.Background(), r, Target{Meta: &memFile{}, Data: &memFile{}}, l)
}

// layout reads an archive and lists what the image would hold.
func layout(t *testing.T, lines ...string) []string {
	t.Helper()
	b := &tarBuild{build: newBuild(Target{Meta: &memFile{}, Data: &memFile{}}, Limits{})}
	if err := b.entries(bytes.NewReader(archive(t, lines...))); err != nil {
		t.Fatal(err)
	}
	return list(t, b.tree)
}

// list has a line for each path of the image to come: "path/" for a directory, "path/ opaque", "path whiteout", "path #n" with the
// same n for names of one inode.
func list(t *testing.T, tree *tree) []string {
	t.Helper()
	whiteout := new(erofs.Inode)
	root, err := tree.root.image(true, func() (*erofs.Inode, error) { return whiteout, nil })
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	inodes := make(map[*erofs.Inode]int)
	var walk func(prefix string, d *erofs.Dir)
	walk = func(prefix string, d *erofs.Dir) {
		slices.SortFunc(d.Entries, func(a, b erofs.Entry) int { return strings.Compare(a.Name, b.Name) })
		for _, e := range d.Entries {
			switch {
			case e.Dir != nil:
				line := prefix + e.Name + "/"
				if slices.ContainsFunc(e.Dir.Attr.Xattrs, func(x erofs.Xattr) bool { return x.Name == opaqueXattr.Name }) {
					line += " opaque"
				}
				out = append(out, line)
				walk(prefix+e.Name+"/", e.Dir)
			case e.Inode == whiteout:
				out = append(out, prefix+e.Name+" whiteout")
			default:
				if _, ok := inodes[e.Inode]; !ok {
					inodes[e.Inode] = len(inodes) + 1
				}
				out = append(out, fmt.Sprintf("%s%s #%d", prefix, e.Name, inodes[e.Inode]))
			}
		}
	}
	walk("", root)
	return out
}

func TestLayout(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []string
		want []string
	}{
		{"missing parents", []string{"f a/b/c x"}, []string{"a/", "a/b/", "a/b/c #1"}},
		{"odd spellings", []string{"d ./", "f /a x", "f ./b//c x", "d b/./"}, []string{"a #1", "b/", "b/c #2"}},
		{"duplicate file", []string{"f a x", "f b y", "f a z"}, []string{"a #1", "b #2"}},
		{"directory again keeps its children", []string{"d a", "f a/b x", "d a"}, []string{"a/", "a/b #1"}},
		{"file replaces directory", []string{"f a/b x", "f a y"}, []string{"a #1"}},
		{"directory replaces file", []string{"f a x", "d a", "f a/b x"}, []string{"a/ opaque", "a/b #1"}},
		{"hard links", []string{"f a x", "h b a", "h c ./b", "h d /c"}, []string{"a #1", "b #1", "c #1", "d #1"}},
		{"hard link to a name that is replaced", []string{"f a x", "h b a", "f a y"}, []string{"a #1", "b #2"}},
		{"hard link to itself", []string{"f a x", "h a a"}, []string{"a #1"}},
		{"hard link to symbolic link", []string{"l a nowhere", "h b a"}, []string{"a #1", "b #1"}},
		{"parent through symbolic link", []string{"d usr/lib", "l lib usr/lib", "f lib/x x"}, []string{"lib #1", "usr/", "usr/lib/", "usr/lib/x #2"}},
		{"symbolic link stays in the layer", []string{"l a ../../../b", "f a/x x", "l c /b/..", "f c/y y"}, []string{"a #1", "b/", "b/x #2", "c #3", "y #4"}},
		{"symbolic link out of a directory with an entry", []string{"d a", "d b", "l a/l ../b", "f a/l/x x"}, []string{"a/", "a/l #1", "b/", "b/x #2"}},
		{"symbolic link out of a directory that was a file", []string{"f a x", "d a", "l a/l ..", "f a/l/x x"}, []string{"a/ opaque", "a/l #1", "x #2"}},
		{"symbolic link to missing directories", []string{"l a b/c", "f a/x x"}, []string{"a #1", "b/", "b/c/", "b/c/x #2"}},
		{"hard link through symbolic link", []string{"f usr/x x", "l u usr", "h y u/x"}, []string{"u #1", "usr/", "usr/x #2", "y #2"}},
		{"whiteout", []string{"f .wh.a ", "f d/.wh.b "}, []string{"a whiteout", "d/", "d/b whiteout"}},
		{"whiteout before own file", []string{"f .wh.a ", "f a x"}, []string{"a #1"}},
		{"whiteout after own file", []string{"f a x", "f .wh.a "}, []string{"a #1"}},
		{"whiteout and own directory", []string{"d a", "f a/b x", "f .wh.a "}, []string{"a/ opaque", "a/b #1"}},
		{"opaque first", []string{"f d/.wh..wh..opq ", "f d/x x"}, []string{"d/ opaque", "d/x #1"}},
		{"opaque last", []string{"f d/x x", "f d/.wh..wh..opq ", "d d"}, []string{"d/ opaque", "d/x #1"}},
		{"whiteouts below opaque hide nothing", []string{"f d/.wh..wh..opq ", "f d/.wh.x ", "f d/e/.wh.y "}, []string{"d/ opaque", "d/e/"}},
		{"bookkeeping of AUFS", []string{"d .wh..wh.plnk", "f .wh..wh.aufs x", "f .wh..wh.orph/1.2 x", "f a x"}, []string{"a #1"}},
		{"0:0 device", []string{"c a", "f b x"}, []string{"b #1"}},
		{"overlay attributes", []string{"x d"}, []string{"d/"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := layout(t, c.in...); !slices.Equal(got, c.want) {
				t.Errorf("%q\n got %q\nwant %q", c.in, got, c.want)
			}
		})
	}
}

func TestOpaqueRootAndDropped(t *testing.T) {
	r, err := convert(bytes.NewReader(archive(t, "f .wh..wh..opq ", "x d", "c dev", "f .wh..wh.aufs ")), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if !r.OpaqueRoot {
		t.Error("root is not opaque")
	}
	if want := (Dropped{OverlayXattrs: 2, WhiteoutDevices: 1, AUFS: 1}); r.Dropped != want {
		t.Errorf("dropped %+v, want %+v", r.Dropped, want)
	}
}

func TestBadEntries(t *testing.T) {
	long, dots := strings.Repeat("n", 256), strings.Repeat("./", 2000)
	for _, c := range []struct {
		name string
		in   []string
		want string // of the error
	}{
		{"dot dot", []string{"f a x", "f b/../../c x"}, `entry "b/../../c" at tar offset 1024: ".."`},
		{"hard link to nowhere", []string{"h a b"}, `hard link to "b", which is not in this layer`},
		{"hard link to missing directory", []string{"h a b/c"}, `no directory "b"`},
		{"hard link to a long name", []string{"h a " + strings.Repeat("b/", 5000)}, "path of 10000 bytes"},
		{"hard link out of the layer", []string{"h a ../b"}, `".."`},
		{"hard link to directory", []string{"d a", "h b a"}, `hard link to the directory "a"`},
		{"hard link to the root", []string{"h b ./"}, `hard link to the directory "./"`},
		{"below a file", []string{"f a x", "f a/b x"}, `entry "a/b" at tar offset 1024: "a" is not a directory`},
		{"loop of symbolic links", []string{"l a b", "l b a", "f a/x x"}, "symbolic links"},
		{"links with long targets", []string{"l a " + dots, "l b a/" + dots, "l c b/" + dots, "f c/x x"}, "more than 4096 directories"},
		{"long name in a link", []string{"l a b/" + long, "f a/x x"}, `entry "a/x" at tar offset 1536: name of 256 bytes`},
		{"long name", []string{"f " + long + " x"}, "name of 256 bytes"},
		{"long path", []string{"f " + strings.Repeat("abcdefg/", 513) + "x x"}, "path of 4"},
		{"root is a file", []string{"l . x"}, "root"},
		{"whiteout of nothing", []string{"f .wh. "}, `whiteout of ""`},
		{"whiteout of ..", []string{"f a/.wh... "}, `whiteout of ".."`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := convert(bytes.NewReader(archive(t, c.in...)), Limits{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
			if n := len(err.Error()); n > 1000 {
				t.Errorf("the message has %d bytes", n)
			}
			var e *EntryError
			if !errors.As(err, &e) || e.Offset < 0 {
				t.Errorf("%v does not say where", err)
			}
		})
	}
}

// FuzzTree makes entries of its input and looks for panics, for directories that do not know where they are, and for names and
// directories that the limits did not see. Three bytes are an entry: its type, its path and the target of a link.
func FuzzTree(f *testing.F) {
	f.Add([]byte{0, 1, 0, 2, 1, 0x31, 0, 0x87, 2, 0x13})
	f.Add([]byte{3, 5, 1, 0x21, 2, 0x61, 0, 0x12})
	parts := [16]string{"", "a", "b", "c", "d", ".", "a/b", "..", "../b", ".wh.a", ".wh..wh..opq", "/", "c/d/a", "../..", "./a/../b", "b/"}
	path := func(c byte) string { return parts[c>>4] + "/" + parts[c&15] }
	types := [...]tarstream.Type{tarstream.Directory, tarstream.Symlink, tarstream.Regular, tarstream.HardLink, tarstream.FIFO}
	b := &tarBuild{build: newBuild(Target{Meta: discard{}, Data: discard{}}, Limits{Inodes: 200})}
	f.Fuzz(func(t *testing.T, in []byte) {
		b.tree, b.inodes, b.kept = newTree(), 0, 0
		for len(in) >= 3 {
			h := &tarstream.Header{Type: types[int(in[0])%len(types)], Name: strings.TrimPrefix(path(in[1]), "/"), Linkname: path(in[2])}
			in = in[3:]
			b.entry(h) // most errors concern this entry alone
		}
		if n := checkTree(t, b.tree.root); n > b.inodes {
			t.Fatalf("%d names, admitted %d", n, b.inodes)
		}
		if _, err := b.tree.root.image(true, func() (*erofs.Inode, error) { return new(erofs.Inode), nil }); err != nil {
			t.Fatal(err)
		}
	})
}

// checkTree counts the names below a directory.
func checkTree(t *testing.T, d *directory) (names int64) {
	for name, n := range d.children {
		if names++; name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
			t.Fatalf("name %q", name)
		}
		if n.dir == nil {
			continue
		}
		if n.dir.parent != d {
			t.Fatalf("%q does not know its parent", name)
		}
		names += checkTree(t, n.dir)
	}
	return names + int64(len(d.hidden))
}

// discard is an erofs.File that keeps nothing.
type discard struct{}

func (discard) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }
func (discard) Truncate(int64) error                   { return nil }
