package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/vm/guest"
)

// layer is a tar to be converted.
type layer struct {
	name string
	open func() (io.ReadCloser, error)
	// spots are read instead of the whole tree.
	spots []guest.Spot
}

// made is a layer of an archive in memory.
func made(name string, archive []byte) layer {
	return layer{name: name, open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil }}
}

// packed is a layer of described files.
func packed(name string, tables ...[]tartest.File) layer {
	return made(name, tartest.Pack(slices.Concat(tables...)))
}

// madeLayers need nothing from the cache.
func madeLayers() []layer {
	return []layer{
		packed("edge", tartest.Edge(), tartest.Duplicates(), largeXattrs()),
		packed("changes", changes()),
		packed("again", again()),
		packed("no-data", noData()),
		packed("large-root", largeRoot()),
		packed("large-directory", largeDirectory(10_000)),
		packed("hard-links", hardLinks(300)),
		sparse(),
		huge(),
	}
}

// cachedLayers are the real ones of some images, as far as `make images` has made them.
func cachedLayers() []layer {
	var layers []layer
	for _, name := range []string{"busybox", "base", "nginx", "nginx-site"} {
		if _, err := os.Stat(lab.Layer(name)); err == nil {
			layers = append(layers, layer{name: name, open: func() (io.ReadCloser, error) { return os.Open(lab.Layer(name)) }})
		}
	}
	return layers
}

// stacksOf are overlay mounts of the layers.
func stacksOf(layers []layer) []guest.Stack {
	stacks := []guest.Stack{
		{Name: "one layer", Layers: []string{"edge"}},
		{Name: "whiteouts", Layers: []string{"again", "changes", "edge"}},
		{Name: "many layers", Layers: []string{"no-data", "sparse", "hard-links", "large-directory", "large-root", "again", "changes", "edge"}},
	}
	if slices.ContainsFunc(layers, func(l layer) bool { return l.name == "nginx-site" }) {
		stacks = append(stacks, guest.Stack{Name: "nginx", Layers: []string{"nginx-site", "nginx", "base"}})
	}
	return stacks
}

// largeXattrs leaves out the value that Linux allows and EROFS has no room for.
func largeXattrs() []tartest.File {
	return slices.DeleteFunc(tartest.LargeXattrs(), func(f tartest.File) bool { return f.Name == "64k-value" })
}

func directory(name string) tartest.File {
	return tartest.File{Name: name, Type: '5', Mode: 0o755, Sec: 1_600_000_000}
}

func regular(name, content string) tartest.File {
	return tartest.File{Name: name, Type: '0', Mode: 0o644, Sec: 1_600_000_001, Data: []byte(content)}
}

// changes is a layer over edge that hides parts of it in every way there is.
func changes() []tartest.File {
	attributes := directory("xattrs/")
	attributes.Xattrs = []tartest.Xattr{{Name: "user.dir", Value: "changed"}}
	return []tartest.File{
		regular("kinds/.wh.fifo", ""), regular("sizes/.wh.8192", ""), regular(".wh.owners", ""), regular(".wh.not-there", ""),
		directory("names/"), regular("names/.wh..wh..opq", ""), regular("names/only-this", "opaque"),
		regular("times", "a file over a directory"),
		directory("kinds/file/"), regular("kinds/file/child", "a directory over a file"),
		attributes,
		regular("sizes/4096", "other contents"),
	}
}

// again is a layer over changes that makes anew what was hidden there. What lies below stays hidden.
func again() []tartest.File {
	return []tartest.File{
		directory("owners/"), regular("owners/new", "new"),
		regular("names/second", "in an opaque directory"),
		directory("times/"), regular("times/new", "a directory over a file over a directory"),
		regular("kinds/fifo", "no FIFO any more"),
	}
}

// noData is a layer without a full block of file contents, whose data blob is empty but for its least length.
func noData() []tartest.File {
	return []tartest.File{
		directory("empty/"), regular("small", "x"),
		{Name: "link", Linkname: "small", Type: '2', Mode: 0o777}, {Name: "hard", Linkname: "small", Type: '1'},
		{Name: "device", Type: '3', Mode: 0o600, Devmajor: 1, Devminor: 3},
	}
}

// largeRoot is a layer whose root directory has large attributes: its inode number must still fit the 16 bits that the superblock has.
func largeRoot() []tartest.File {
	root := directory("./")
	root.Xattrs = []tartest.Xattr{{Name: "user.max", Value: string(tartest.Pattern(1<<16-1, 1))}, {Name: "trusted.small", Value: "x"}}
	for i := range 200 {
		root.Xattrs = append(root.Xattrs, tartest.Xattr{Name: fmt.Sprintf("user.key%03d", i), Value: string(tartest.Pattern(i, 2))})
	}
	return []tartest.File{root, directory("dir/"), regular("dir/file", "below"), {Name: "blocks", Type: '0', Mode: 0o600, Data: tartest.Pattern(20_000, 3)}}
}

// largeDirectory has more entries than its index in the page cache has pages, with names of many lengths.
func largeDirectory(entries int) []tartest.File {
	files := []tartest.File{directory("large/")}
	for i := range entries {
		files = append(files, regular(fmt.Sprintf("large/%0*d", 5+i%60, i), fmt.Sprint(i)))
	}
	return files
}

// hardLinks has one file with data in blocks and a tail under many names in several directories, and links to what is no file.
func hardLinks(count int) []tartest.File {
	files := []tartest.File{
		{Name: "file", Type: '0', Mode: 0o4755, Data: tartest.Pattern(3*4096+7, 4), Xattrs: []tartest.Xattr{{Name: "user.one", Value: "for all"}}},
		{Name: "fifo", Type: '6', Mode: 0o600}, {Name: "fifo-link", Linkname: "fifo", Type: '1', Mode: 0o600},
		{Name: "chr", Type: '3', Mode: 0o600, Devmajor: 5, Devminor: 1}, {Name: "chr-link", Linkname: "chr", Type: '1', Mode: 0o600},
	}
	for i := range count {
		files = append(files, tartest.File{Name: fmt.Sprintf("%d/link-%d", i%7, i), Linkname: "file", Type: '1', Mode: 0o4755})
	}
	return files
}

const (
	mib = 1 << 20
	gib = 1 << 30
)

// sparse has files with holes at all places, small enough to be read as a whole.
func sparse() layer {
	var b tartest.Builder
	for _, f := range []struct {
		name     string
		size     int64
		segments []tartest.Segment
	}{
		{"only-a-hole", 10 * mib, nil},
		{"ends-with-a-hole", 3*mib + 1, tartest.Segments(0, 4096, mib, 512)},
		{"begins-with-a-hole", 2*mib + 100, tartest.Segments(mib+512, mib+100-512)},
		{"parts-of-blocks", 100_000, tartest.Segments(512, 512, 5120, 1024, 99_840, 160)},
		{"large-chunks", 40*mib + 12345, tartest.Segments(0, 512, 20*mib-512, mib, 40*mib+12288, 57)},
	} {
		addSparse(&b, f.name, f.size, f.segments)
	}
	return made("sparse", b.End())
}

// huge has files that no test reads as a whole, with data far out.
func huge() layer {
	var b tartest.Builder
	addSparse(&b, "5-gib", 5*gib+12345, tartest.Segments(0, 512, 4*gib, 3*mib, 5*gib+12288, 57))
	addSparse(&b, "lastlog", 1200*gib+5, tartest.Segments(600*gib, 512))
	l := made("huge", b.End())
	for _, s := range []struct {
		path           string
		offset, length int64
	}{
		{"5-gib", 0, 8192}, {"5-gib", 2 * gib, 8192}, {"5-gib", 4*gib - 4096, 3*mib + 8192}, {"5-gib", 5 * gib, 1 << 16},
		{"lastlog", 0, 8192}, {"lastlog", 600*gib - 4096, 12288}, {"lastlog", 1200*gib - 100, 4096},
	} {
		l.spots = append(l.spots, guest.Spot{Path: s.path, Offset: s.offset, Length: s.length})
	}
	return l
}

func addSparse(b *tartest.Builder, name string, size int64, segments []tartest.Segment) {
	b.Sparse10(tartest.Header{Name: name, Type: '0', Mode: 0o644, ModTime: 1_600_000_003}, size, segments, tartest.SparseData(segments))
}
