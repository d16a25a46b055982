package tarstream

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// TestGNUTar reads archives that GNU tar makes of a tree.
func TestGNUTar(t *testing.T) {
	testenv.Need(t, testenv.Tool("tar"))
	for name, tt := range map[string]struct {
		options string
		long    bool // the format knows long names
		sparse  bool // holes are kept
		ns      bool // and so are nanoseconds
	}{
		"v7":             {"--format=v7", false, false, false},
		"ustar":          {"--format=ustar", false, false, false},
		"oldgnu":         {"--format=oldgnu", true, false, false},
		"gnu":            {"--format=gnu", true, false, false},
		"posix":          {"--format=posix", true, false, true},
		"oldgnu sparse":  {"--format=oldgnu -S", true, true, false},
		"gnu sparse":     {"--format=gnu -S", true, true, false},
		"gnu sparse raw": {"--format=gnu -S --hole-detection=raw", true, true, false},
		"posix 0.0":      {"--format=posix --sparse-version=0.0", true, true, true},
		"posix 0.1":      {"--format=posix --sparse-version=0.1", true, true, true},
		"posix 1.0":      {"--format=posix --sparse-version=1.0", true, true, true},
		"posix default":  {"--format=posix -S", true, true, true},
		"label":          {"--format=gnu --label=name", true, false, false},
		"posix label":    {"--format=posix --label=name", true, false, true},
		"incremental":    {"--format=gnu --listed-incremental=SNAPSHOT", true, false, false},
		"global":         {"--format=posix --pax-option=globexthdr.name=g,comment=hello", true, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			files := makeTree(t, dir, tt.long)
			options := strings.ReplaceAll(tt.options, "SNAPSHOT", filepath.Join(t.TempDir(), "snapshot"))
			args := append(strings.Fields(options), "-c", "-f", "-", "-C", dir, ".")
			archive, err := exec.Command("tar", args...).Output()
			if err != nil {
				t.Fatalf("tar: %v", err)
			}
			got, err := readAll(bytes.NewReader(archive), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			checkTree(t, dir, files, got)
			for _, e := range got {
				if tt.sparse != (e.Sparse != nil) && strings.HasPrefix(filepath.Base(e.Name), "sparse") {
					t.Errorf("%s: Sparse is %v", e.Name, e.Sparse)
				}
				if (e.ModTime.Nsec != 0) != tt.ns && e.Type == Regular {
					t.Errorf("%s: mtime %v", e.Name, e.ModTime)
				}
			}
		})
	}
}

// makeTree makes files and returns how many names there are, "." included.
func makeTree(t *testing.T, dir string, long bool) int {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	must(os.Mkdir(path("dir"), 0o750))
	must(os.WriteFile(path("dir/file"), tartest.Pattern(1234, 1), 0o640))
	must(os.WriteFile(path("empty"), nil, 0o600))
	must(os.Symlink("dir/file", path("symlink")))
	must(os.Link(path("dir/file"), path("zlink")))
	names := 8
	if long {
		must(os.WriteFile(path(strings.Repeat("l", 250)), []byte("long"), 0o644))
		must(os.Symlink(strings.Repeat("t/", 150), path("long-symlink")))
		names += 2
	}
	must(os.WriteFile(path("sparse-end"), tartest.Pattern(8192, 2), 0o644))
	must(os.Truncate(path("sparse-end"), 1<<20))
	f, err := os.Create(path("sparse-many"))
	must(err)
	for i := range int64(30) {
		_, err := f.WriteAt(tartest.Pattern(4096, uint64(i)), i*65536+4096)
		must(err)
	}
	must(f.Close())
	when := []unix.Timespec{{Sec: 1_600_000_000, Nsec: 7}, {Sec: 1_600_000_000, Nsec: 7}}
	entries, err := os.ReadDir(dir)
	must(err)
	for _, e := range append(entryNames(entries), "dir/file") {
		must(unix.UtimesNanoAt(unix.AT_FDCWD, path(e), when, unix.AT_SYMLINK_NOFOLLOW))
	}
	return names
}

func entryNames(entries []os.DirEntry) []string {
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// checkTree compares entries with the files they were made of.
func checkTree(t *testing.T, dir string, files int, got []entry) {
	t.Helper()
	if len(got) != files {
		t.Errorf("%d entries, want %d", len(got), files)
	}
	for _, e := range got {
		path := filepath.Join(dir, e.Name)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Errorf("%q: %v", e.Name, err)
			continue
		}
		if e.Type != HardLink && (e.Mode != st.Mode&07777 || e.UID != st.Uid || e.GID != st.Gid || e.ModTime.Sec != st.Mtim.Sec) {
			t.Errorf("%q: mode %o owner %d:%d mtime %v, want %+v", e.Name, e.Mode, e.UID, e.GID, e.ModTime, st)
		}
		switch e.Type {
		case Regular:
			if want, err := os.ReadFile(path); err != nil || !bytes.Equal(expand(e), want) {
				t.Errorf("%q: other contents (%v)", e.Name, err)
			}
		case Symlink:
			if want, err := os.Readlink(path); err != nil || e.Linkname != want {
				t.Errorf("%q: link to %q, want %q (%v)", e.Name, e.Linkname, want, err)
			}
		case HardLink:
			a, errA := os.Stat(path)
			b, errB := os.Stat(filepath.Join(dir, e.Linkname))
			if errA != nil || errB != nil || !os.SameFile(a, b) {
				t.Errorf("%q: linked to %q", e.Name, e.Linkname)
			}
		}
	}
}

// expand returns the contents of a file with its holes.
func expand(e entry) []byte {
	if e.Sparse == nil {
		return []byte(e.data)
	}
	out, data := make([]byte, e.Size), e.data
	for _, s := range e.Sparse {
		copy(out[s.Offset:s.Offset+s.Length], data)
		data = data[s.Length:]
	}
	return out
}

// TestGNUTarAttributes reads attributes and ACLs as GNU tar writes them.
func TestGNUTarAttributes(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.Tool("tar"))
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, []byte("data"), 0o650); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"user.a=b%c": "v", "user.empty": "", "trusted.t": "\x00\xff", "security.capability": "\x01\x00\x00\x02" + strings.Repeat("\x00", 16),
		// GNU tar writes names of users even with --numeric-owner, so this user must have none.
		"system.posix_acl_access": strings.Replace(aclBinary, "\xe8\x03\x00\x00", "\x00\x5e\xd0\xb2", 1),
	} {
		if err := unix.Lsetxattr(path, name, []byte(value), 0); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	archive, err := exec.Command("tar", "--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*", "-c", "-f", "-", "-C", dir, "file").Output()
	if err != nil {
		t.Fatal(err)
	}
	got, err := readAll(bytes.NewReader(archive), Limits{})
	if err != nil || len(got) != 1 {
		t.Fatalf("%d entries, %v", len(got), err)
	}
	if len(got[0].Xattrs) != 5 {
		t.Errorf("got %d attributes, want 5", len(got[0].Xattrs))
	}
	for _, x := range got[0].Xattrs {
		value := make([]byte, 100)
		n, err := unix.Lgetxattr(path, x.Name, value)
		if err != nil || !bytes.Equal(value[:n], x.Value) {
			t.Errorf("%s = %q, want %q (%v)", x.Name, x.Value, value[:max(n, 0)], err)
		}
	}
}
