package goerofs

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/treediff"
)

// choices is a fuzz input from which a generator draws its decisions. When it is used up every choice is 0.
type choices []byte

func (c *choices) number(bytes int) (v uint64) {
	for range bytes {
		v <<= 8
		if len(*c) > 0 {
			v |= uint64((*c)[0])
			*c = (*c)[1:]
		}
	}
	return v
}

// below returns a number from 0 to n-1.
func (c *choices) below(n int) int {
	if n <= 256 {
		return int(c.number(1)) % n
	}
	return int(c.number(2)) % n
}

func pick[T any](c *choices, from ...T) T { return from[c.below(len(from))] }

// pickOr returns one of the values, or as often what draw returns.
func pickOr[T any](c *choices, draw func() T, from ...T) T {
	if i := c.below(len(from) + 1); i < len(from) {
		return from[i]
	}
	return draw()
}

// upTo draws a number below n.
func (c *choices) upTo(n int) func() int { return func() int { return c.below(n) } }

// layer is a layer being generated: its archive, and what the image must show.
type layer struct {
	in      choices
	tar     tartest.Builder
	records []treediff.Record
	// inodes names the inode of each record; linkable lists the records that are not directories, with the entry they came from.
	inodes   []int
	linkable []linkable
	dirs     []string // names in the archive, with a slash at the end
	entries  int
	large    bool             // something that takes long is in it
	expected converter.Result // Inodes and Dropped
}

type linkable struct {
	file  tartest.File
	inode int
}

// The bounds of one layer, which keep an execution at a few milliseconds.
const (
	maxEntries      = 500
	maxArchiveBytes = 128 << 10
	maxPathBytes    = 3000
)

func generate(in choices) *layer {
	l := &layer{in: in, dirs: []string{""}}
	l.root()
	for len(l.in) > 0 && l.entries < maxEntries && l.tar.Len() < maxArchiveBytes {
		l.entry()
	}
	l.finish()
	return l
}

// maxRootValue bounds the attributes of the root: those that do not fit into block 0 become shared ones, and go-erofs 0.3.1 reads no
// shared attribute of more than a block, name and header included.
const maxRootValue = 4096 - 4 - 255

// root describes the layer's root, which has an entry or the attributes that a parent without an entry gets.
func (l *layer) root() {
	f := tartest.File{Name: "./", Type: '5', Mode: 0o755}
	if l.in.below(2) == 1 {
		f = l.attributes(f)
		for i, x := range f.Xattrs {
			f.Xattrs[i].Value = x.Value[:min(len(x.Value), maxRootValue)]
		}
		l.tar.File(f)
	}
	l.record(".", f)
}

func (l *layer) entry() {
	l.entries++
	switch kind := l.in.below(16); kind {
	case 0, 1:
		f := l.attributes(tartest.File{Name: l.name() + "/", Type: '5'})
		l.tar.File(f)
		l.dirs = append(l.dirs, strings.TrimPrefix(f.Name, "./"))
		l.record(f.Name, f)
	case 2, 3:
		f := l.attributes(tartest.File{Name: l.name(), Type: '2'})
		f.Linkname = strings.ReplaceAll(string(l.pattern(1+l.size(f.Xattrs)%4095)), "\x00", "/")
		l.tar.File(f)
		l.record(f.Name, f)
	case 4:
		f := l.attributes(tartest.File{Name: l.name(), Type: '6'})
		l.tar.File(f)
		l.record(f.Name, f)
	case 5:
		l.device()
	case 6, 7:
		l.hardLink()
	case 8, 9:
		l.sparse()
	case 10:
		l.manyNames()
	default:
		f := l.attributes(tartest.File{Name: l.name(), Type: '0'})
		f.Data = l.pattern(l.size(f.Xattrs))
		l.tar.File(f)
		l.record(f.Name, f)
	}
}

// name returns a new name in one of the directories. The number at its end makes it the only one.
func (l *layer) name() string {
	dir := l.dirs[l.in.below(len(l.dirs))]
	if len(dir) > maxPathBytes {
		dir = ""
	}
	base := pick(&l.in, "", "a", "!", "-", ".", "..", "\xff\xfe", "\xc3\xa9", "new\nline", " ", "~", "long")
	if base == "long" {
		base = strings.Repeat("n", l.in.below(250))
	}
	return pick(&l.in, "", "./") + dir + fmt.Sprintf("%s_%d", base, l.entries)
}

func (l *layer) attributes(f tartest.File) tartest.File {
	id := func() uint32 {
		return pickOr(&l.in, func() uint32 { return uint32(l.in.number(4) % math.MaxUint32) },
			0, 1, 1000, 65535, 65536, 1<<21-1, 1<<21, math.MaxInt32+1, math.MaxUint32-1)
	}
	f.Mode = pickOr(&l.in, func() uint32 { return uint32(l.in.number(2)) & 0o7777 }, 0o755, 0o644, 0, 0o7777, 0o4755, 0o2000, 0o1777)
	f.UID, f.GID = id(), id()
	f.Sec = pickOr(&l.in, func() int64 { return int64(l.in.number(8)) >> 2 },
		0, 1_700_000_000, -1, -2, math.MinInt32, math.MaxInt32+1, math.MaxUint32+1, 1<<33-1, 1<<33, -1<<40)
	f.Nsec = pickOr(&l.in, func() uint32 { return uint32(l.in.number(4) % 1e9) }, 0, 1, 500000000, 999999999)
	for i := range pickOr(&l.in, l.in.upTo(20), 0, 0, 0, 1, 2, 3) {
		f.Xattrs = append(f.Xattrs, l.xattr(i))
	}
	return f
}

// acl is a valid access control list.
const acl = "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x04\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"

func (l *layer) xattr(i int) tartest.Xattr {
	namespace := pick(&l.in, "user.", "trusted.", "security.", "user.", "trusted.", "trusted.overlay.", "user.overlay.", "acl")
	if namespace == "acl" {
		if i == 0 {
			return tartest.Xattr{Name: "system.posix_acl_access", Value: acl}
		}
		namespace = "user."
	}
	name := namespace + strings.Repeat("n", pickOr(&l.in, l.in.upTo(230), 0, 1, 2, 3)) + fmt.Sprintf(".%d", i)
	length := l.in.below(pick(&l.in, 1, 17, 17, 17, 300, 9000))
	return tartest.Xattr{Name: name, Value: string(l.pattern(length))}
}

// size returns the size of a file, often one at which its last bytes just fit behind the inode and the attributes, or just do not.
func (l *layer) size(xattrs []tartest.Xattr) int {
	area := 64
	if len(xattrs) > 0 {
		area += 12
	}
	for _, x := range xattrs {
		_, suffix, _ := strings.Cut(x.Name, ".")
		area += (4 + len(suffix) + len(x.Value) + 3) &^ 3
	}
	edge := max(0, 4096-area%4096+l.in.below(5)-2)
	return pickOr(&l.in, l.in.upTo(pick(&l.in, 300, 5000, 40<<10)), 0, 1, edge, edge, edge+4096, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 8193)
}

func (l *layer) pattern(n int) []byte { return tartest.Pattern(n, uint64(l.entries)) }

func (l *layer) device() {
	f := l.attributes(tartest.File{Name: l.name(), Type: pick(&l.in, byte('3'), '4')})
	f.Devmajor = pick[uint32](&l.in, 1, 0, 255, 256, 4095)
	f.Devminor = pickOr(&l.in, func() uint32 { return uint32(l.in.number(3)) & (1<<20 - 1) }, 3, 0, 255, 256, 65535, 65536, 1<<20-1)
	l.tar.File(f)
	if f.Type == '3' && f.Devmajor == 0 && f.Devminor == 0 {
		l.expected.Dropped.WhiteoutDevices++
		return
	}
	l.record(f.Name, f)
}

// hardLink adds a name. The entry repeats the attributes of the inode, as archivers write them.
func (l *layer) hardLink() {
	if len(l.linkable) == 0 {
		return
	}
	to := l.linkable[l.in.number(2)%uint64(len(l.linkable))]
	f := to.file
	f.Linkname, f.Name, f.Type, f.Data, f.Xattrs = f.Name, l.name(), '1', nil, nil
	l.tar.File(f)
	r := l.records[slices.Index(l.inodes, to.inode)]
	r.Path = clean(f.Name)
	l.records = append(l.records, r)
	l.inodes = append(l.inodes, to.inode)
	f.Type, f.Linkname = to.file.Type, to.file.Linkname
	l.linkable = append(l.linkable, linkable{f, to.inode})
}

// manyNames fills a directory of its own, so that directories of several blocks and all lengths of their last block occur.
func (l *layer) manyNames() {
	f := l.attributes(tartest.File{Name: l.name() + "/", Type: '5'})
	l.tar.File(f)
	l.record(f.Name, f)
	length := pickOr(&l.in, l.in.upTo(250), 0, 1, 5, 50)
	kind, n := pick(&l.in, byte('6'), '2', '5'), l.in.below(300)
	if kind != '6' && !l.rarely() {
		kind = '6'
	}
	for i := range n {
		l.entries++
		child := tartest.File{Name: fmt.Sprintf("%s%03d%s", f.Name, i, strings.Repeat("m", length)), Type: kind, Mode: 0o600}
		switch kind { // nearly a block for each, so that there are inodes of more than the mebibyte that the writer holds
		case '2':
			child.Linkname = strings.Repeat("t", 3900+i%100)
		case '5':
			child.Name += "/"
			child.Xattrs = []tartest.Xattr{{Name: "trusted.x", Value: string(l.pattern(3900 + i%100))}}
		}
		l.tar.File(child)
		l.record(child.Name, child)
	}
}

// rarely allows one thing that takes long, in few layers.
func (l *layer) rarely() bool {
	if l.large || l.in.below(4) > 0 {
		return false
	}
	l.large = true
	return true
}

// record notes what a path shows, and counts the inode.
func (l *layer) record(name string, f tartest.File) {
	r := treediff.Record{Path: clean(name), Mode: f.Mode, UID: f.UID, GID: f.GID, Mtime: treediff.Time{Sec: f.Sec, Nsec: int64(f.Nsec)}, Nlink: 1}
	switch f.Type {
	case '0':
		sum := sha256.Sum256(f.Data)
		r.Type, r.Size, r.Content = treediff.File, int64(len(f.Data)), hex.EncodeToString(sum[:])
	case '2':
		r.Type, r.Size, r.Target = treediff.Symlink, int64(len(f.Linkname)), f.Linkname
	case '3':
		r.Type, r.Rdev = treediff.Character, unix.Mkdev(f.Devmajor, f.Devminor)
	case '4':
		r.Type, r.Rdev = treediff.Block, unix.Mkdev(f.Devmajor, f.Devminor)
	case '5':
		r.Type, r.Nlink = treediff.Directory, 0
	case '6':
		r.Type = treediff.FIFO
	}
	r.Xattrs = l.keptXattrs(f)
	inode := len(l.records)
	l.records = append(l.records, r)
	l.inodes = append(l.inodes, inode)
	if f.Type != '5' {
		f.Data = nil
		l.linkable = append(l.linkable, linkable{f, inode})
	}
	l.expected.Inodes++
}

// keptXattrs leaves out what is dropped on purpose, and counts it.
func (l *layer) keptXattrs(f tartest.File) map[string]string {
	kept := make(map[string]string)
	for _, x := range f.Xattrs {
		namespace, rest, _ := strings.Cut(x.Name, ".")
		switch {
		case namespace != "security" && strings.HasPrefix(rest, "overlay."):
			l.expected.Dropped.OverlayXattrs++
		case namespace == "user" && f.Type != '0' && f.Type != '5', namespace == "system" && f.Type == '2':
			l.expected.Dropped.Xattrs++
		default:
			kept[x.Name] = x.Value
		}
	}
	return kept
}

// finish ends the archive and completes the records.
func (l *layer) finish() {
	l.tar.End()
	l.tar.Raw(make([]byte, pick(&l.in, 0, 0, 512, 8192)))
	names := make(map[int][]int)
	for i, inode := range l.inodes {
		names[inode] = append(names[inode], i)
	}
	for _, group := range names {
		if len(group) == 1 {
			continue
		}
		first := slices.MinFunc(group, func(a, b int) int { return strings.Compare(l.records[a].Path, l.records[b].Path) })
		for _, i := range group {
			l.records[i].Nlink, l.records[i].FirstLink = uint64(len(group)), l.records[first].Path
		}
	}
	slices.SortFunc(l.records, func(a, b treediff.Record) int { return strings.Compare(a.Path, b.Path) })
}

func clean(name string) string {
	if name == "." {
		return name
	}
	return strings.TrimSuffix(strings.TrimPrefix(name, "./"), "/")
}
