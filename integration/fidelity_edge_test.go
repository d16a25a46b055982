package integration

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// TestFidelityEdge does the same as TestFidelity with an archive of everything that is easy to get wrong.
func TestFidelityEdge(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS, testenv.Tool("tar"), testenv.Tool("mkfs.ext4"), lab.ToolProgram("fsck.erofs"))
	f := newFidelity(t, writeArchive(t, edgeArchive()))
	f.kernelEqualsTar(t)
	t.Run("fsck", f.fsck)
	t.Run("go-erofs", f.goErofs)
	t.Run("deterministic", f.deterministic)
	t.Run("directory", f.directory)
	t.Run("gzip", func(t *testing.T) { f.compressed(t, "gzip", "-1") })
	t.Run("zstd", func(t *testing.T) { f.compressed(t, "zstd", "-1") })
}

// TestFidelityHuge converts files that are too long for other readers of the format: fsck.erofs 1.9.4 stops at 2 GiB of holes.
func TestFidelityHuge(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS, testenv.Tool("tar"), testenv.Tool("mkfs.ext4"))
	const mib, gib, tib = 1 << 20, 1 << 30, 1 << 40
	var b tartest.Builder
	addSparse(&b, sparseFile{"5-gib", 5*gib + 12345, []tartest.Segment{{Offset: 0, Length: 512}, {Offset: 4 * gib, Length: 3 * mib}, {Offset: 5*gib + 12288, Length: 57}}})
	addSparse(&b, sparseFile{"lastlog", tib/2 + 5, []tartest.Segment{{Offset: tib / 4, Length: 512}}})
	f := newFidelity(t, writeArchive(t, b.End()))
	f.kernelEqualsTar(t)
	t.Run("directory", f.directory)
	if used := allocated(t, f.image.data.Name()); used > 100*mib {
		t.Errorf("the data blob takes %d bytes of disk: holes were filled", used)
	}
}

func writeArchive(t *testing.T, archive []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "layer.tar")
	if err := os.WriteFile(name, archive, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// edgeArchive is a layer of many odd entries.
func edgeArchive() []byte {
	var b tartest.Builder
	for _, files := range [][]tartest.File{tartest.Edge(), tartest.Duplicates(), largeXattrs(), whiteouts(), links()} {
		for _, f := range files {
			b.File(f)
		}
	}
	addSparse(&b, sparseFiles()...)
	return b.End()
}

// largeXattrs leaves out the value that Linux allows and EROFS has no room for, and most of the attributes of a file that has more
// of them than ext4 can keep.
func largeXattrs() []tartest.File {
	files := slices.DeleteFunc(tartest.LargeXattrs(), func(f tartest.File) bool { return f.Name == "64k-value" })
	for i := range files {
		files[i].Xattrs = files[i].Xattrs[:min(len(files[i].Xattrs), 100)]
	}
	return files
}

// whiteouts is all that docs/conversion.md says about marks of overlayfs and AUFS.
func whiteouts() []tartest.File {
	dir := func(name string) tartest.File {
		return tartest.File{Name: "wh/" + name, Type: '5', Mode: 0o750, UID: 3, Sec: 1_600_000_000, Nsec: 7}
	}
	file := func(name string) tartest.File {
		return tartest.File{Name: "wh/" + name, Type: '0', Mode: 0o640, GID: 4, Sec: 1_600_000_001, Data: []byte(name)}
	}
	marked := dir("marked/")
	marked.Xattrs = []tartest.Xattr{{Name: "trusted.overlay.opaque", Value: "y"}, {Name: "trusted.overlay.origin", Value: ""}, {Name: "user.kept", Value: "v"}}
	redirected := file("redirected")
	redirected.Xattrs = []tartest.Xattr{{Name: "trusted.overlay.redirect", Value: "/x"}, {Name: "user.overlay.metacopy", Value: ""}}
	device := tartest.File{Name: "wh/device", Type: '3', Mode: 0o600}
	return []tartest.File{
		dir(""),
		file(".wh.gone"), file(".wh.gone-too"),
		file(".wh.own-before"), file("own-before"),
		file("own-after"), file(".wh.own-after"),
		dir("replaced-after/"), file("replaced-after/child"), file(".wh.replaced-after"),
		file(".wh.replaced-before"), file("replaced-before/child"),
		dir("opaque-first/"), file("opaque-first/.wh..wh..opq"), file("opaque-first/child"), file("opaque-first/.wh.nothing"),
		file("opaque-last/child"), dir("opaque-last/sub/"), file("opaque-last/sub/.wh.nothing"), file("opaque-last/.wh..wh..opq"),
		file("implied/only-a-mark/.wh.gone"),
		file(".wh..wh.aufs"), dir(".wh..wh.plnk/"), file(".wh..wh.orph/1.2"), file("implied-by-nothing/.wh..wh.aufs"),
		marked, redirected, device,
	}
}

// links is a parent that is a symbolic link of the same layer.
func links() []tartest.File {
	return []tartest.File{
		{Name: "links/real/", Type: '5', Mode: 0o711, Sec: 1_600_000_002},
		{Name: "links/link", Linkname: "real", Type: '2', Mode: 0o777},
		{Name: "links/link/child", Type: '0', Mode: 0o600, Data: []byte("through a link")},
	}
}

type sparseFile struct {
	name     string
	size     int64
	segments []tartest.Segment
}

func sparseFiles() []sparseFile {
	const mib = 1 << 20
	return []sparseFile{
		{"only-a-hole", 10 * mib, nil},
		{"ends-with-a-hole", 3*mib + 1, []tartest.Segment{{Offset: 0, Length: 4096}, {Offset: mib, Length: 512}}},
		{"begins-with-a-hole", 2*mib + 100, []tartest.Segment{{Offset: mib + 512, Length: mib + 100 - 512}}},
		{"many-segments", 40 * 8192, everySecondPage(40)},
		{"blocks", 100_000, []tartest.Segment{{Offset: 512, Length: 512}, {Offset: 5120, Length: 1024}, {Offset: 99_840, Length: 160}}},
		{"large-chunks", 40*mib + 12345, []tartest.Segment{{Offset: 0, Length: 512}, {Offset: 20*mib - 512, Length: mib}, {Offset: 40*mib + 12288, Length: 57}}},
	}
}

// addSparse adds files with holes in all forms that GNU tar has written. It only reads back what it writes itself: segments of whole
// tar blocks but for the last one, which has no length where the file ends with a hole.
func addSparse(b *tartest.Builder, files ...sparseFile) {
	for _, f := range files {
		data := tartest.SparseData(f.segments)
		if n := len(f.segments); n == 0 || f.segments[n-1].Offset+f.segments[n-1].Length < f.size {
			f.segments = append(f.segments, tartest.Segment{Offset: f.size})
		}
		h := func(form string) tartest.Header {
			return tartest.Header{Name: "sparse/" + f.name + "-" + form, Type: '0', Mode: 0o644, ModTime: 1_600_000_003}
		}
		b.SparseOld(h("old"), f.size, f.segments, data)
		b.Sparse00(h("0.0"), f.size, f.segments, data)
		b.Sparse01(h("0.1"), f.size, f.segments, data)
		b.Sparse10(h("1.0"), f.size, f.segments, data)
	}
}

func everySecondPage(n int64) (s []tartest.Segment) {
	for i := range n {
		s = append(s, tartest.Segment{Offset: i * 8192, Length: 4096})
	}
	return s
}
