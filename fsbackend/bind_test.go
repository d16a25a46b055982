package fsbackend

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// bind makes a bind mount that is removed when the test ends.
func bind(t *testing.T, dir, target string) {
	t.Helper()
	if err := unix.Mount(dir, target, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unmount(target); err != nil {
			t.Error(err)
		}
	})
}

// TestUsersOfBindMounts: our own mount of a directory is no user of it, also not its copy in another mount namespace. A bind mount
// of that one is, and goes on being one when the directory is renamed.
func TestUsersOfBindMounts(t *testing.T) {
	l := makeLayers(t)
	tree := mkdir(t, l.root, "layers", "dir")
	mkdir(t, tree, "below")
	bind(t, tree, l.lower[0])
	l.mustUse(t)

	sleeper := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 60")
	out, err := sleeper.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer sleeper.Wait()
	defer sleeper.Process.Kill()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	l.mustUse(t)

	bind(t, l.lower[0], l.target)
	l.mustUse(t, l.lower[0])
	if err := os.Rename(filepath.Dir(tree), filepath.Join(l.root, "renamed")); err != nil {
		t.Fatal(err)
	}
	l.mustUse(t, l.lower[0])
	if err := Unmount(l.target); err != nil {
		t.Fatal(err)
	}
	l.mustUse(t)

	bind(t, filepath.Join(l.lower[0], "below"), l.target)
	l.mustUse(t, l.lower[0])
}

// TestUsersOfAnUpperDirectory: without layers below, a snapshot's mount is a bind mount of its upper directory.
func TestUsersOfAnUpperDirectory(t *testing.T) {
	l := makeLayers(t)
	bind(t, l.upper, l.target)
	l.mustUse(t, l.upper)
}
