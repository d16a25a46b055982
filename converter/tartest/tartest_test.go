package tartest_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// TestEdgeIsWhatTarExtracts holds the table against GNU tar: what tests of the converter expect must be what tar does.
func TestEdgeIsWhatTarExtracts(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.Tool("tar"))
	for name, files := range map[string][]tartest.File{"edge": tartest.Edge(), "duplicates": tartest.Duplicates()} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			extract(t, dir, tartest.Pack(files))
			last := map[string]int{}
			for i, f := range files {
				last[filepath.Clean(f.Name)] = i
			}
			for i, f := range files {
				if last[filepath.Clean(f.Name)] == i && f.Type != '1' {
					if err := same(filepath.Join(dir, f.Name), f); err != nil {
						t.Errorf("%q (%s): %v", f.Name, f.Why, err)
					}
				}
			}
		})
	}
}

func TestHardLinksAreWhatTarExtracts(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.Tool("tar"))
	dir := t.TempDir()
	extract(t, dir, tartest.Pack(tartest.Duplicates()))
	for name, want := range map[string]string{"keeps": "old", "target": "new", "became-link": "new"} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
		}
	}
	dir = t.TempDir()
	extract(t, dir, tartest.Pack(tartest.Edge()))
	for link, target := range map[string]string{"link": "file", "link-dot": "file", "link-chain": "file", "link-symlink": "symlink"} {
		a, errA := os.Lstat(filepath.Join(dir, "kinds", link))
		b, errB := os.Lstat(filepath.Join(dir, "kinds", target))
		if errA != nil || errB != nil || !os.SameFile(a, b) {
			t.Errorf("%s is not %s (%v, %v)", link, target, errA, errB)
		}
	}
}

func TestEdgeHasNoDuplicates(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range append(tartest.Edge(), tartest.LargeXattrs()...) {
		name := filepath.Clean(f.Name)
		if seen[name] {
			t.Errorf("%q occurs twice", name)
		}
		seen[name] = true
	}
}

func extract(t *testing.T, dir string, archive []byte) {
	t.Helper()
	cmd := exec.Command("tar", "-x", "-p", "--same-owner", "--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*", "--warning=no-timestamp", "-f", "-", "-C", dir)
	cmd.Stdin = bytes.NewReader(archive)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("tar: %v\n%.2000s", err, out)
	}
}

var kinds = map[byte]uint32{'0': unix.S_IFREG, '2': unix.S_IFLNK, '3': unix.S_IFCHR, '4': unix.S_IFBLK, '5': unix.S_IFDIR, '6': unix.S_IFIFO}

// same compares an extracted file with its description.
func same(path string, f tartest.File) error {
	path = strings.TrimSuffix(path, "/")
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	if got, want := st.Mode, kinds[f.Type]|f.Mode; got != want {
		return fmt.Errorf("mode %o, want %o", got, want)
	}
	if st.Uid != f.UID || st.Gid != f.GID {
		return fmt.Errorf("owner %d:%d, want %d:%d", st.Uid, st.Gid, f.UID, f.GID)
	}
	if st.Mtim.Sec != f.Sec || st.Mtim.Nsec != int64(f.Nsec) {
		return fmt.Errorf("mtime %d.%09d, want %d.%09d", st.Mtim.Sec, st.Mtim.Nsec, f.Sec, f.Nsec)
	}
	if rdev := unix.Mkdev(f.Devmajor, f.Devminor); st.Rdev != rdev {
		return fmt.Errorf("rdev %d:%d, want %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev), f.Devmajor, f.Devminor)
	}
	switch f.Type {
	case '0':
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, f.Data) {
			return fmt.Errorf("other contents (%v)", err)
		}
	case '2':
		if got, err := os.Readlink(path); err != nil || got != f.Linkname {
			return fmt.Errorf("link to %q (%v), want %q", got, err, f.Linkname)
		}
	}
	return sameXattrs(path, f.Xattrs)
}

func sameXattrs(path string, want []tartest.Xattr) error {
	list := make([]byte, 65536)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		return err
	}
	if got := strings.Count(string(list[:n]), "\x00"); got != len(want) {
		return fmt.Errorf("%d attributes %q, want %d", got, list[:n], len(want))
	}
	value := make([]byte, 65536)
	for _, x := range want {
		n, err := unix.Lgetxattr(path, x.Name, value)
		if err != nil || string(value[:n]) != x.Value {
			return fmt.Errorf("attribute %s = %q (%v), want %q", x.Name, value[:max(n, 0)], err, x.Value)
		}
	}
	return nil
}
