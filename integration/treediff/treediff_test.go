package treediff_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/treediff"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// tree makes the same small tree each time, below a fresh directory.
func tree(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	at := func(name string) string { return filepath.Join(root, name) }
	ok(t, os.Mkdir(at("dir"), 0o755))
	ok(t, os.WriteFile(at("dir/file"), []byte("contents"), 0o644))
	ok(t, os.WriteFile(at("dir/other"), []byte("contents"), 0o644))
	ok(t, os.WriteFile(at("linked"), []byte("three links"), 0o644))
	ok(t, os.Link(at("linked"), at("dir/linked")))
	ok(t, os.Link(at("linked"), at("dir/again")))
	ok(t, os.Symlink("target", at("symlink")))
	ok(t, unix.Mkfifo(at("fifo"), 0o644))
	ok(t, unix.Mknod(at("device"), unix.S_IFCHR|0o600, int(unix.Mkdev(259, 70000))))
	ok(t, unix.Mknod(at("socket"), unix.S_IFSOCK|0o600, 0))
	ok(t, unix.Lsetxattr(at("dir/file"), "trusted.number", []byte("one"), 0))
	for _, name := range []string{"dir/file", "dir/other", "linked", "symlink", "fifo", "device", "socket", "dir", "."} {
		setTime(t, at(name), 1_700_000_000, 5)
	}
	return root
}

func TestEqualTreesHaveNoDifference(t *testing.T) {
	testenv.Need(t, testenv.Root)
	if d := treediff.Compare(scan(t, tree(t)), scan(t, tree(t))); len(d) != 0 {
		t.Fatalf("two trees made alike differ: %v", d)
	}
}

func TestEverySingleChangeIsFound(t *testing.T) {
	testenv.Need(t, testenv.Root)
	remake := func(name string, mode uint32, rdev uint64) func(*testing.T, string) {
		return func(t *testing.T, root string) {
			ok(t, os.Remove(filepath.Join(root, name)))
			ok(t, unix.Mknod(filepath.Join(root, name), mode, int(rdev)))
			setTime(t, filepath.Join(root, name), 1_700_000_000, 5)
			setTime(t, root, 1_700_000_000, 5)
		}
	}
	tests := []struct {
		name   string
		change func(t *testing.T, root string)
		want   []string // path and field of each difference
	}{
		{"mode", func(t *testing.T, root string) { ok(t, unix.Chmod(root+"/dir/file", 0o4644)) }, []string{"dir/file mode"}},
		{"mode of the root", func(t *testing.T, root string) { ok(t, unix.Chmod(root, 0o1777)) }, []string{". mode"}},
		{"uid", func(t *testing.T, root string) { ok(t, os.Lchown(root+"/symlink", 70000, -1)) }, []string{"symlink uid"}},
		{"gid", func(t *testing.T, root string) { ok(t, os.Lchown(root+"/dir", -1, 70000)) }, []string{"dir gid"}},
		{"one nanosecond", func(t *testing.T, root string) { setTime(t, root+"/dir/file", 1_700_000_000, 6) }, []string{"dir/file mtime"}},
		{"one second of a symlink", func(t *testing.T, root string) { setTime(t, root+"/symlink", 1_700_000_001, 5) }, []string{"symlink mtime"}},
		{"value of an attribute", setxattr("dir/file", "trusted.number", "two"), []string{"dir/file xattr"}},
		{"attribute with an empty value", setxattr("dir/file", "user.empty", ""), []string{"dir/file xattr"}},
		{"large attribute of a symlink", setxattr("symlink", "trusted.large", strings.Repeat("x", 3000)), []string{"symlink xattr"}},
		{"missing attribute", func(t *testing.T, root string) { ok(t, unix.Lremovexattr(root+"/dir/file", "trusted.number")) }, []string{"dir/file xattr"}},
		{"ACL", setxattr("dir/other", "system.posix_acl_access", acl), []string{"dir/other xattr"}},
		{"minor number", remake("device", unix.S_IFCHR|0o600, unix.Mkdev(259, 70001)), []string{"device rdev"}},
		{"character to block device", remake("device", unix.S_IFBLK|0o600, unix.Mkdev(259, 70000)), []string{"device type"}},
		{"FIFO to socket", remake("fifo", unix.S_IFSOCK|0o644, 0), []string{"fifo type"}},
		{"one byte", write("dir/file", "Contents"), []string{"dir/file content"}},
		{"one more byte", write("dir/file", "contents\x00"), []string{"dir/file size", "dir/file content"}},
		{"target", func(t *testing.T, root string) {
			ok(t, os.Remove(root+"/symlink"))
			ok(t, os.Symlink("tarGet", root+"/symlink"))
			setTime(t, root+"/symlink", 1_700_000_000, 5)
			setTime(t, root, 1_700_000_000, 5)
		}, []string{"symlink target"}},
		{"link to another inode", func(t *testing.T, root string) {
			ok(t, os.Remove(root+"/dir/again"))
			ok(t, os.WriteFile(root+"/dir/again", []byte("three links"), 0o644))
			setTime(t, root+"/dir/again", 1_700_000_000, 5)
			setTime(t, root+"/dir", 1_700_000_000, 5)
		}, []string{"dir/again nlink", "dir/again links", "dir/linked nlink", "dir/linked links", "linked nlink", "linked links"}},
		{"additional file", func(t *testing.T, root string) {
			ok(t, os.WriteFile(root+"/dir/z", nil, 0o644))
			setTime(t, root+"/dir", 1_700_000_000, 5)
		}, []string{"dir/z path"}},
		{"missing file", func(t *testing.T, root string) {
			ok(t, os.Remove(root+"/fifo"))
			setTime(t, root, 1_700_000_000, 5)
		}, []string{"fifo path"}},
	}
	want := scan(t, tree(t))
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			root := tree(t)
			test.change(t, root)
			var got []string
			for _, d := range treediff.Compare(want, scan(t, root)) {
				got = append(got, d.Path+" "+string(d.Field))
			}
			if strings.Join(got, ", ") != strings.Join(test.want, ", ") {
				t.Errorf("found %q, want %q", got, test.want)
			}
		})
	}
}

func TestIgnoredFieldsAreNotCompared(t *testing.T) {
	want := []treediff.Record{{Path: "a", Mode: 1, Nlink: 2}}
	got := []treediff.Record{{Path: "a", Mode: 2, Nlink: 1}}
	d := treediff.Compare(want, got, treediff.FieldNlink)
	if len(d) != 1 || d[0].Field != treediff.FieldMode {
		t.Fatalf("got %v, want only the mode", d)
	}
}

func TestHolesAndZerosAreTheSameContents(t *testing.T) {
	testenv.Need(t, testenv.Root)
	const size = 300 << 20 // above the size from which holes are skipped
	files := map[string]func(f *os.File){
		"hole":  func(*os.File) {},
		"zeros": func(f *os.File) { writeAt(t, f, bytes.Repeat([]byte{0}, 1<<20), 128<<20) },
		"one":   func(f *os.File) { writeAt(t, f, []byte{1}, 128<<20) },
		"moved": func(f *os.File) { writeAt(t, f, []byte{1}, 128<<20+1) },
		"later": func(f *os.File) { writeAt(t, f, []byte{1}, 129<<20) },
		"last":  func(f *os.File) { writeAt(t, f, []byte{1}, size-1) },
	}
	root := t.TempDir()
	for name, fill := range files {
		f, err := os.Create(filepath.Join(root, name))
		ok(t, err)
		ok(t, f.Truncate(size))
		fill(f)
		ok(t, f.Close())
	}
	digests := map[string][]string{}
	for _, r := range scan(t, root) {
		if r.Type == treediff.File {
			digests[r.Content] = append(digests[r.Content], r.Path)
		}
	}
	if len(digests) != len(files)-1 {
		t.Errorf("got groups %v, want only hole and zeros to be the same", digests)
	}
}

func TestPathsMayBeLongerThanPathMax(t *testing.T) {
	testenv.Need(t, testenv.Root)
	root := t.TempDir()
	dir, err := unix.Open(root, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	ok(t, err)
	name := strings.Repeat("n", 250)
	for range 20 {
		ok(t, unix.Mkdirat(dir, name, 0o755))
		sub, err := unix.Openat(dir, name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		ok(t, err)
		ok(t, unix.Close(dir))
		dir = sub
	}
	ok(t, unix.Close(dir))
	if got := len(scan(t, root)); got != 21 {
		t.Errorf("got %d records, want 21", got)
	}
}

func TestScanReportsAMissingRoot(t *testing.T) {
	if _, err := treediff.Scan(t.Context(), filepath.Join(t.TempDir(), "no")); err == nil {
		t.Fatal("scanned a directory that does not exist")
	}
}

// acl is user::rw-,user:1000:r--,group::r--,mask::r--,other::r-- in the form of system.posix_acl_access. Its group bits are
// those of mode 0644, so that setting it changes nothing else.
const acl = "\x02\x00\x00\x00" +
	"\x01\x00\x06\x00\xff\xff\xff\xff" +
	"\x02\x00\x04\x00\xe8\x03\x00\x00" +
	"\x04\x00\x04\x00\xff\xff\xff\xff" +
	"\x10\x00\x04\x00\xff\xff\xff\xff" +
	"\x20\x00\x04\x00\xff\xff\xff\xff"

func setxattr(name, attribute, value string) func(*testing.T, string) {
	return func(t *testing.T, root string) {
		ok(t, unix.Lsetxattr(filepath.Join(root, name), attribute, []byte(value), 0))
	}
}

func write(name, contents string) func(*testing.T, string) {
	return func(t *testing.T, root string) {
		ok(t, os.WriteFile(filepath.Join(root, name), []byte(contents), 0))
		setTime(t, filepath.Join(root, name), 1_700_000_000, 5)
	}
}

func writeAt(t *testing.T, f *os.File, b []byte, offset int64) {
	t.Helper()
	_, err := f.WriteAt(b, offset)
	ok(t, err)
}

func setTime(t *testing.T, path string, sec, nsec int64) {
	t.Helper()
	ts, err := unix.TimeToTimespec(time.Unix(sec, nsec))
	ok(t, err)
	ok(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}

func scan(t *testing.T, root string) []treediff.Record {
	t.Helper()
	records, err := treediff.Scan(t.Context(), root)
	ok(t, err)
	return records
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
