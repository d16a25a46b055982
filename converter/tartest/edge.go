package tartest

import (
	"fmt"
	"math"
	"strings"
)

// when is the time of entries that test something else.
const when = 1_700_000_000

// Edge returns files that are easy to get wrong, each name once. GNU tar, run as root on ext4 with -p --acls --xattrs --xattrs-include=*,
// extracts the archive to exactly what the table says; parents without an entry ("missing", "missing/parents", "dots") have no description.
// ACLs are text in the archive: as attributes, GNU tar would drop them with --acls. There are no whiteouts.
func Edge() []File {
	var t table
	t.dir("", "./")
	t.kinds()
	t.modes()
	t.owners()
	t.times()
	t.xattrs()
	t.acls()
	t.names()
	t.sizes()
	t.fullDirectories()
	t.deep()
	t.orders()
	return t.files
}

// Duplicates returns files some of whose names occur several times: the last one counts, unless Why says otherwise. GNU tar extracts
// the archive the same way.
func Duplicates() []File {
	var t table
	t.dir("", "./")
	t.file("replaced by other contents", "twice", []byte("old")).Xattrs = []Xattr{{"user.old", "x"}}
	t.file("the second of two", "twice", []byte("new, longer"))
	t.file("replaced after a hard link was made to it", "target", []byte("old"))
	t.link("keeps the old contents of its target", "keeps", "target")
	t.file("has other contents than its former link", "target", []byte("new"))
	t.file("replaced by a hard link", "became-link", []byte("lost"))
	t.link("now the same file as target", "became-link", "target")
	t.file("file replaced by a directory", "file-dir", []byte("lost"))
	t.dir("was a file", "file-dir/")
	t.file("in a directory that was a file", "file-dir/child", []byte("child"))
	t.dir("empty directory replaced by a file", "dir-file/")
	t.file("was a directory", "dir-file", []byte("file"))
	t.symlink("symbolic link replaced by a file", "link-file", "twice")
	t.file("was a symbolic link, whose target is not touched", "link-file", []byte("file"))
	t.dir("replaced attributes, kept children", "dir-twice/").Mode = 0o700
	t.file("stays when its directory comes again", "dir-twice/child", []byte("child"))
	again := t.dir("has the attributes of the second", "dir-twice/")
	again.Mode, again.UID, again.Sec = 0o751, 77, when+5
	t.file("device replaced by a FIFO", "fifo", nil).Type = '3'
	t.last().Devmajor, t.last().Devminor = 1, 3
	t.file("was a device", "fifo", nil).Type = '6'
	return t.files
}

// LargeXattrs returns files with more attributes than ext4 without the ea_inode feature can hold.
func LargeXattrs() []File {
	var t table
	t.file("largest value", "max-value", []byte("x")).Xattrs = []Xattr{{"user.max", string(Pattern(1<<16-1, 3))}}
	t.file("value of 64 KiB", "64k-value", nil).Xattrs = []Xattr{{"user.64k", string(Pattern(1<<16, 4))}}
	many := t.file("1000 names", "many", Pattern(5000, 5))
	for i := range 1000 {
		many.Xattrs = append(many.Xattrs, Xattr{fmt.Sprintf("user.key%04d", i), fmt.Sprint(i)})
	}
	return t.files
}

// table is a list of files being written.
type table struct{ files []File }

func (t *table) last() *File { return &t.files[len(t.files)-1] }

// add appends a file, which may be changed until the next one is added.
func (t *table) add(f File) *File {
	if f.Sec == 0 {
		f.Sec = when
	}
	t.files = append(t.files, f)
	return t.last()
}

func (t *table) file(why, name string, data []byte) *File {
	return t.add(File{Why: why, Name: name, Type: '0', Mode: 0o644, Data: data})
}

func (t *table) dir(why, name string) *File {
	return t.add(File{Why: why, Name: name, Type: '5', Mode: 0o755})
}

func (t *table) symlink(why, name, target string) *File {
	return t.add(File{Why: why, Name: name, Linkname: target, Type: '2', Mode: 0o777})
}

func (t *table) link(why, name, target string) *File {
	return t.add(File{Why: why, Name: name, Linkname: target, Type: '1', Mode: 0o644})
}

func (t *table) device(why, name string, kind byte, major, minor uint32) {
	t.add(File{Why: why, Name: name, Type: kind, Mode: 0o640, Devmajor: major, Devminor: minor})
}

func (t *table) kinds() {
	t.dir("", "kinds/")
	t.file("", "kinds/file", []byte("file\n"))
	t.symlink("", "kinds/symlink", "file")
	t.symlink("dangling, absolute", "kinds/dangling", "/no/such/file")
	t.symlink("longest target", "kinds/long-symlink", strings.Repeat("0123456789abcde/", 256)[:4095])
	t.link("to a file", "kinds/link", "kinds/file")
	t.link("with ./", "./kinds/link-dot", "./kinds/file")
	t.link("to a hard link", "kinds/link-chain", "kinds/link")
	t.link("to a symbolic link", "kinds/link-symlink", "kinds/symlink").Mode = 0o777
	t.device("", "kinds/chr", '3', 1, 3)
	t.device("minor > 255", "kinds/chr-256", '3', 10, 256)
	t.device("minor > 65535", "kinds/blk-70000", '4', 259, 70000)
	t.device("largest numbers", "kinds/blk-max", '4', 4095, 1<<20-1)
	t.add(File{Name: "kinds/fifo", Type: '6', Mode: 0o600})
}

func (t *table) modes() {
	t.dir("", "modes/")
	modes := []uint32{0, 0o7777, 0o7000, 0o4755, 0o2755, 0o6755, 0o1644, 0o4000, 0o2000, 0o1000, 0o2644}
	for bit := uint32(1); bit < 0o1000; bit <<= 1 {
		modes = append(modes, bit)
	}
	for _, m := range modes {
		t.file("", fmt.Sprintf("modes/file-%04o", m), []byte("m")).Mode = m
		t.dir("", fmt.Sprintf("modes/dir-%04o/", m)).Mode = m
	}
	t.device("", "modes/chr-4777", '3', 1, 5)
	t.last().Mode = 0o4777
}

func (t *table) owners() {
	t.dir("", "owners/")
	for _, id := range []uint32{1, 65534, 65535, 65536, maxOctal7, maxOctal7 + 1, math.MaxInt32, math.MaxInt32 + 1, math.MaxUint32 - 1} {
		f := t.file("", fmt.Sprintf("owners/uid-%d", id), nil)
		f.UID, f.GID = id, 5
		f = t.symlink("", fmt.Sprintf("owners/gid-%d", id), "x")
		f.UID, f.GID = 5, id
	}
}

func (t *table) times() {
	t.dir("with a fraction", "times/").Nsec = 5
	at := func(name string, sec int64, nsec uint32) {
		t.add(File{Name: "times/" + name, Type: '0', Mode: 0o644, Sec: sec, Nsec: nsec})
	}
	at("ns", when, 123456789)
	at("ns-1", when, 1)
	at("ns-max", when, 999999999)
	at("minus-1.5", -2, 500000000)
	at("minus-0.25", -1, 750000000)
	at("minus-1", -1, 0)
	at("1901", math.MinInt32, 0)
	at("2038", math.MaxInt32+1, 7)
	at("2106", math.MaxUint32+1, 0)
	at("2242", maxOctal11, 0)
	at("2242-pax", maxOctal11+1, 999999999)
	t.file("the epoch itself", "times/0", nil).Sec = 0
	t.symlink("", "times/symlink", "x").Nsec = 42
}

// Values of file capabilities: version 2 (cap_net_raw+ep) and version 3, which adds a root id.
const (
	capabilityV2 = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	capabilityV3 = "\x01\x00\x00\x03\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xa0\x86\x01\x00"
)

func (t *table) xattrs() {
	t.dir("", "xattrs/").Xattrs = []Xattr{{"user.dir", "value"}, {"trusted.dir", "value"}}
	give := func(name string, xattrs ...Xattr) *File {
		f := t.file("", "xattrs/"+name, []byte(name))
		f.Xattrs = xattrs
		return f
	}
	give("capability-v2", Xattr{"security.capability", capabilityV2}).Mode = 0o755
	give("capability-v3", Xattr{"security.capability", capabilityV3}).Mode = 0o755
	give("empty", Xattr{"user.empty", ""})
	give("binary", Xattr{"user.nul", "a\x00b\nc=d"}, Xattr{"trusted.high", "\xff\xfe"})
	give("ima", Xattr{"security.ima", "\x01" + string(Pattern(20, 1))})
	give("4k", Xattr{"user.4k", string(Pattern(3900, 2))})
	give("long-name", Xattr{"user." + strings.Repeat("n", 250), "v"})
	give("dots", Xattr{"user.a.b.c", "1"}, Xattr{"user.A", "2"}, Xattr{"user.\xc3\xa9", "3"})
	t.symlink("trusted attribute of a symbolic link", "xattrs/symlink", "x").Xattrs = []Xattr{{"trusted.link", "v"}}
	t.device("", "xattrs/chr", '3', 1, 7)
	t.last().Xattrs = []Xattr{{"trusted.device", "v"}}
	for n := range 17 {
		xattrs := []Xattr{{"user.n", strings.Repeat("v", n)}}
		t.file("every length of the attribute area", fmt.Sprintf("xattrs/length-%02d", n), Pattern(4096+n, 6)).Xattrs = xattrs
		t.dir("", fmt.Sprintf("xattrs/dir-%02d/", n)).Xattrs = xattrs
		t.file("", fmt.Sprintf("xattrs/dir-%02d/child", n), nil)
	}
}

func (t *table) acls() {
	t.dir("", "acls/")
	const binary = "\x02\x00\x00\x00" +
		"\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x05\x00\xe8\x03\x00\x00" + "\x04\x00\x04\x00\xff\xff\xff\xff" +
		"\x10\x00\x05\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
	const text = "user::rw-,user:1000:r-x,group::r--,mask::r-x,other::---"
	access, byDefault := Xattr{"system.posix_acl_access", binary}, Xattr{"system.posix_acl_default", binary}
	f := t.file("access", "acls/file", nil)
	f.Mode, f.Xattrs, f.ACLAccess = 0o650, []Xattr{{"user.first", "x"}, access}, text
	f = t.dir("access and default", "acls/dir/")
	f.Mode, f.Xattrs, f.ACLAccess, f.ACLDefault = 0o650, []Xattr{access, byDefault}, text, text
	f = t.dir("default alone", "acls/default/")
	f.Xattrs, f.ACLDefault = []Xattr{byDefault}, text
}

func (t *table) names() {
	t.dir("", "names/")
	for _, n := range []string{
		strings.Repeat("x", 255), strings.Repeat("\xc3\xa9", 127), "\xff\xfe\x80", "new\nline", "!", "-", "-rf", "+", "\x01", "...", "..x", ".x",
		" ", " x ", "tab\t", "back\\slash", "%41", "*", "a", "A", "\xef\xbb\xbfbom", "x\r",
		strings.Repeat("y", 94), strings.Repeat("z", 95), // with the directory: exactly what the name field holds, and one more
	} {
		t.file("", "names/"+n, []byte(n))
	}
	t.dir("a name that sorts before . in every directory", "names/dir!/")
	t.symlink("target that is not UTF-8", "names/symlink", "\xff\n")
	t.dir("long path of long names", "names/"+strings.Repeat("d", 255)+"/")
	t.file("", "names/"+strings.Repeat("d", 255)+"/"+strings.Repeat("f", 255), nil)
}

func (t *table) sizes() {
	t.dir("", "sizes/")
	for i, n := range []int{0, 1, 511, 512, 513, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 8193, 65536, 1<<20 + 1} {
		t.file("", fmt.Sprintf("sizes/%d", n), Pattern(n, uint64(i)))
	}
	t.file("zeros", "sizes/zeros", make([]byte, 12345))
}

// fullDirectories adds directories whose entries fill one EROFS block up to a few bytes, or take a few bytes more. An entry takes 12 bytes
// and its name; "." and ".." are entries too.
func (t *table) fullDirectories() {
	const entry, dots = 12, 12 + 1 + 12 + 2
	t.dir("", "full/")
	for total := 4084; total <= 4108; total++ {
		dir := fmt.Sprintf("full/%d/", total)
		t.dir(fmt.Sprintf("%d bytes of entries", total), dir)
		left := total - dots
		for i := 0; left > 0; i++ {
			n := 200
			if left <= entry+255 {
				n = left - entry
			} else if left < 480 {
				n = 100 // so that the last name has a length that is possible
			}
			t.file("", dir+fmt.Sprintf("%03d", i)+strings.Repeat("n", n-3), nil)
			left -= entry + n
		}
	}
	t.dir("several blocks", "full/blocks/")
	for i := range 700 {
		t.file("", fmt.Sprintf("full/blocks/file-%03d", i), nil)
	}
}

func (t *table) deep() {
	path := "deep/"
	t.dir("", path)
	for range 300 {
		path += "d/"
		t.dir("", path)
	}
	t.file("300 directories down", path+"file", []byte("deep"))
}

// orders adds entries in an unusual order.
func (t *table) orders() {
	t.file("its parents have no entries", "missing/parents/file", []byte("orphan"))
	t.file("its directory comes later", "late/child", []byte("child"))
	f := t.dir("after its child", "late/")
	f.Mode, f.UID, f.Sec, f.Nsec = 0o750, 12, when+9, 99
	t.file("with ./ and //, its parent has no entry", "./dots//file", []byte("dots"))
	t.dir("without a slash at the end", "bare")
	t.file("", "bare/file", nil)
}
