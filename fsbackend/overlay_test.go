package fsbackend

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountinfo"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/ownthread"
)

// layers is a directory tree like the snapshotter's, with an overlay mount's target.
type layers struct {
	root, target, upper, work, unused string
	lower                             []string
}

func makeLayers(t *testing.T) layers {
	t.Helper()
	dir := mountDir(t)
	root := filepath.Join(dir, "root")
	l := layers{
		root:   root,
		target: mkdir(t, dir, "target"),
		upper:  mkdir(t, root, "snapshots", "12", "upper"),
		work:   mkdir(t, root, "snapshots", "12", "work"),
		unused: mkdir(t, root, "m", "1a2"),
	}
	for _, n := range []string{"1a", "1b", "1c"} {
		l.lower = append(l.lower, mkdir(t, root, "m", n))
	}
	return l
}

func (l layers) all() []string { return append([]string{l.upper, l.unused}, l.lower...) }

func (l layers) mustUse(t *testing.T, paths ...string) {
	t.Helper()
	used, err := Users(l.all())
	if err != nil {
		t.Fatal(err)
	}
	got := slices.Sorted(maps.Keys(used))
	if slices.Sort(paths); !slices.Equal(got, paths) {
		t.Errorf("in use: %q\nwant: %q", got, paths)
	}
}

func TestUsers(t *testing.T) {
	l := makeLayers(t)
	l.mustUse(t)
	mountOverlay(t, l.target, [2]string{"lowerdir", strings.Join(l.lower, ":")}, [2]string{"upperdir", l.upper}, [2]string{"workdir", l.work})
	l.mustUse(t, append([]string{l.upper}, l.lower...)...)
	if err := Unmount(l.target); err != nil {
		t.Fatal(err)
	}
	l.mustUse(t)
}

// containerd makes long options shorter by changing into the common directory of the lower ones. The mount table then shows what it
// gave, without a word about that directory.
func TestUsersRelative(t *testing.T) {
	l := makeLayers(t)
	t.Chdir(filepath.Join(l.root, "m"))
	mountOverlay(t, l.target, [2]string{"lowerdir", "1a:1c"}, [2]string{"upperdir", l.upper}, [2]string{"workdir", l.work})
	l.mustUse(t, l.upper, l.lower[0], l.lower[2])
	if err := Unmount(l.target); err != nil {
		t.Fatal(err)
	}
	t.Chdir(l.root)
	mountOverlay(t, l.target, [2]string{"lowerdir", "m/1a:./m/../m/1b"})
	l.mustUse(t, l.lower[0], l.lower[1])
}

func TestUsersFromSibling(t *testing.T) {
	l := makeLayers(t)
	t.Chdir(filepath.Join(l.root, "snapshots"))
	mountOverlay(t, l.target, [2]string{"lowerdir", "../m/1a:../m/1b"})
	l.mustUse(t, l.lower[0], l.lower[1])
}

func TestUsersDotMayBeAnything(t *testing.T) {
	l := makeLayers(t)
	t.Chdir(l.lower[0])
	mountOverlay(t, l.target, [2]string{"lowerdir", "../1b:."})
	l.mustUse(t, l.all()...)
}

// The upper directory of a running container becomes a layer by renaming it.
func TestUsersAfterRename(t *testing.T) {
	l := makeLayers(t)
	mountOverlay(t, l.target, [2]string{"lowerdir", l.lower[0]}, [2]string{"upperdir", l.upper}, [2]string{"workdir", l.work})
	if err := os.Rename(l.upper, filepath.Join(l.root, "elsewhere")); err != nil {
		t.Fatal(err)
	}
	l.mustUse(t, l.upper, l.lower[0])
	if err := os.RemoveAll(filepath.Join(l.root, "snapshots")); err != nil {
		t.Fatal(err)
	}
	l.mustUse(t, l.upper, l.lower[0])
}

func TestUsersThroughLinks(t *testing.T) {
	l := makeLayers(t)
	alias := link(t, l.root)
	mountOverlay(t, l.target, [2]string{"lowerdir", filepath.Join(alias, "m", "1a")}, [2]string{"upperdir", filepath.Join(alias, "snapshots", "12", "upper")},
		[2]string{"workdir", l.work})
	l.mustUse(t, l.upper, l.lower[0])

	// The other way round: asked by the link, mounted by the real name.
	if err := Unmount(l.target); err != nil {
		t.Fatal(err)
	}
	mountOverlay(t, l.target, [2]string{"lowerdir", l.lower[1] + ":" + l.lower[2]})
	l.lower[1] = filepath.Join(alias, "m", "1b")
	l.mustUse(t, l.lower[1], l.lower[2])
}

func TestUsersOddNames(t *testing.T) {
	l := makeLayers(t)
	odd := mkdir(t, l.root, "m", "a:b c\\d") // a comma is refused before Linux 6.5
	l.lower = append(l.lower, odd)
	escaped := strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace(odd)
	mountOverlay(t, l.target, [2]string{"lowerdir", l.lower[0] + ":" + escaped})
	l.mustUse(t, l.lower[0], odd)
}

// Newer runtimes add layers one by one.
func TestUsersAppended(t *testing.T) {
	e := entryOf(t, `rw,lowerdir+=/m/1a,lowerdir+=/m/1\0722,datadir+=/m/d,upperdir=/s/u,workdir=/s/w,index=off`)
	want := []string{"/m/1a", "/m/1:2", "/m/d", "/s/u", "/s/w"}
	for _, w := range want {
		if !slices.Contains(overlayLayers(e), w) {
			t.Errorf("%q is missing in %q", w, overlayLayers(e))
		}
	}
}

func entryOf(t *testing.T, options string) mountinfo.Entry {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mountinfo")
	if err := os.WriteFile(path, []byte("1 0 0:1 / /t rw - overlay overlay "+options+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	entries, err := mountinfo.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	return entries[0]
}

// An overlay that was unmounted here lives on in a namespace of its own.
func TestUsersInOtherNamespace(t *testing.T) {
	l := makeLayers(t)
	mountOverlay(t, l.target, [2]string{"lowerdir", l.lower[0] + ":" + l.lower[1]})
	other := exec.CommandContext(t.Context(), "sleep", "600")
	other.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the death signal follows the thread
	defer runtime.UnlockOSThread()
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	if err := Unmount(l.target); err != nil {
		t.Fatal(err)
	}
	l.mustUse(t, l.lower[0], l.lower[1])
	if err := other.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	other.Wait()
	l.mustUse(t)
}

// A single thread may live in another namespace than its process.
func TestUsersInOtherThread(t *testing.T) {
	l := makeLayers(t)
	mountOverlay(t, l.target, [2]string{"lowerdir", l.lower[0] + ":" + l.lower[1]})
	ready, leave, left := make(chan error), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(left)
		ownthread.Run(func() {
			err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS)
			if err == nil {
				err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
			}
			ready <- err
			<-leave
			// The thread's end is seen by nobody, so its view ends here.
			unix.Unmount(l.target, unix.MNT_DETACH)
		})
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	if err := Unmount(l.target); err != nil {
		t.Fatal(err)
	}
	l.mustUse(t, l.lower[0], l.lower[1])
	close(leave)
	<-left
	l.mustUse(t)
}

func TestUsersOfNothing(t *testing.T) {
	if used, err := Users(nil); err != nil || len(used) != 0 {
		t.Errorf("got %v, %v", used, err)
	}
}

func FuzzSplitLayers(f *testing.F) {
	f.Add("a", "b:c")
	f.Add(`\`, `\:`)
	f.Fuzz(func(t *testing.T, a, b string) {
		escape := strings.NewReplacer(`\`, `\\`, `:`, `\:`)
		want := slices.DeleteFunc([]string{a, b}, func(s string) bool { return s == "" })
		if got := splitLayers(escape.Replace(a) + ":" + escape.Replace(b)); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		splitLayers(a)
	})
}
