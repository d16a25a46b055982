package snapshotter

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/file"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMountsReturned(t *testing.T) {
	s := start(t, immediate(newRoot(t)))
	commit(t, s, "one", "", oneFile(t, "1", "1"))
	commit(t, s, "two", "one", oneFile(t, "2", "2"))
	first := func(mounts []mount.Mount, err error) mount.Mount {
		t.Helper()
		must(t, err)
		if len(mounts) != 1 {
			t.Fatalf("%d mounts, want 1: older clients mount all of them on one another", len(mounts))
		}
		return mounts[0]
	}
	for _, tc := range []struct {
		name     string
		got      mount.Mount
		wantType string
		options  []string // must be among the options
	}{
		{"prepare nothing", first(s.Prepare(t.Context(), "a0", "")), "bind", []string{"rw", "rbind"}},
		{"view nothing", first(s.View(t.Context(), "v0", "")), "bind", []string{"ro", "rbind"}},
		{"prepare one", first(s.Prepare(t.Context(), "a1", "one")), "overlay", nil},
		{"view one", first(s.View(t.Context(), "v1", "one")), "bind", []string{"ro", "rbind"}},
		{"prepare two", first(s.Prepare(t.Context(), "a2", "two")), "overlay", nil},
		{"view two", first(s.View(t.Context(), "v2", "two")), "overlay", nil},
	} {
		if tc.got.Type != tc.wantType {
			t.Errorf("%s: %s mount, want %s", tc.name, tc.got.Type, tc.wantType)
		}
		want := tc.options
		if tc.got.Type == "overlay" {
			want = []string{"index=off", "redirect_dir=nofollow", "metacopy=off"}
		}
		for _, o := range want {
			if !slices.Contains(tc.got.Options, o) {
				t.Errorf("%s: options %v lack %s", tc.name, tc.got.Options, o)
			}
		}
	}
	for key, want := range map[string]bool{"v0": true, "v1": true, "v2": true, "a0": false, "a1": false, "a2": false} {
		mounts, err := s.Mounts(t.Context(), key)
		dir := mounted(t, mounts, err)
		err = os.WriteFile(filepath.Join(dir, "written"), nil, 0o600)
		if readOnly := err != nil; readOnly != want {
			t.Errorf("%s is read-only: %v, want %v", key, readOnly, want)
		}
	}
}

func TestRootOfUpperIsThatOfTheLowerOne(t *testing.T) {
	s := start(t, immediate(newRoot(t)))
	commit(t, s, "base", "", func(dir string) {
		must(t, os.Chown(dir, 12, 34))
		must(t, unix.Chmod(dir, 0o2751))
	})
	for _, key := range []string{"on directory", "on image"} {
		mounts, err := s.Prepare(t.Context(), key, "base")
		var st unix.Stat_t
		must(t, unix.Stat(mounted(t, mounts, err), &st))
		if st.Mode&0o7777 != 0o2751 || st.Uid != 12 || st.Gid != 34 {
			t.Errorf("%s: root has mode %o and owner %d:%d", key, st.Mode, st.Uid, st.Gid)
		}
		convertAll(t, s)
	}
}

// TestSetIDAndAttributes: the layer's mount in the host's tree is nosuid, the container's overlay is not.
func TestSetIDAndAttributes(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.Tool("id"))
	s := start(t, immediate(newRoot(t)))
	id, err := exec.LookPath("id")
	must(t, err)
	program, err := os.ReadFile(id)
	must(t, err)
	commit(t, s, "base", "", func(dir string) {
		must(t, os.WriteFile(filepath.Join(dir, "id"), program, 0o755))
		must(t, unix.Chmod(filepath.Join(dir, "id"), 0o4755))
		must(t, unix.Setxattr(filepath.Join(dir, "id"), "user.note", []byte("value"), 0))
	})
	convertAll(t, s)
	mounts, err := s.Prepare(t.Context(), "child", "base")
	dir := mounted(t, mounts, err)
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o755)) // for the user below
	}
	cmd := exec.Command(filepath.Join(dir, "id"), "-u")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "0" {
		t.Errorf("set-id program through the overlay: %q, %v; want user 0", out, err)
	}
	var value [16]byte
	n, err := unix.Getxattr(filepath.Join(dir, "id"), "user.note", value[:])
	if err != nil || string(value[:n]) != "value" {
		t.Errorf("extended attribute: %q, %v", value[:max(n, 0)], err)
	}
	var st unix.Statfs_t
	must(t, unix.Statfs(mountOf(t, s, "base"), &st))
	if want := int64(unix.ST_NOSUID | unix.ST_NODEV | unix.ST_RDONLY); st.Flags&want != want {
		t.Errorf("the layer's mount has flags %#x, want ro, nosuid, nodev", st.Flags)
	}
}

// mountOf returns the mountpoint of a committed snapshot's instance.
func mountOf(t testing.TB, s *Snapshotter, key string) string {
	t.Helper()
	id := instanceOf(t, s, key).ID
	points, err := fsbackend.MountsBelow(s.root)
	must(t, err)
	var dir string
	must(t, s.view(t.Context(), func(_ ctx, r *records) error {
		n, _ := r.mountNumber(id)
		dir = s.mountDir(n)
		return nil
	}))
	if !slices.Contains(points, dir) {
		t.Fatalf("%s is not mounted", dir)
	}
	return dir
}

func TestReboot(t *testing.T) {
	root := newRoot(t)
	s := start(t, immediate(root))
	commit(t, s, "image", "", oneFile(t, "1", "one"))
	convertAll(t, s)
	commit(t, s, "directory", "image", oneFile(t, "2", "two"))
	before, err := s.Prepare(t.Context(), "container", "directory")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(activeUpper(t, s, "container"), "3"), []byte("three"), 0o600))

	must(t, s.Close())
	unmountBelow(t, root)
	s = start(t, immediate(root))
	after, err := s.Mounts(t.Context(), "container")
	dir := mounted(t, after, err)
	if fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("mounts changed from %v to %v", before, after)
	}
	for name, want := range map[string]string{"1": "one", "2": "two", "3": "three"} {
		wantContent(t, filepath.Join(dir, name), want)
	}
	unmountBelow(t, filepath.Join(root, "m"))
	fresh, err := s.Prepare(t.Context(), "second", "directory")
	wantContent(t, filepath.Join(mounted(t, fresh, err), "2"), "two")
	must(t, checkConsistent(t.Context(), s))
}

// TestManyLayersOverLoopDevices makes 128 layers, which need 256 loop devices.
func TestManyLayersOverLoopDevices(t *testing.T) {
	root := newRoot(t)
	opts := Options{Root: root, Backend: file.New(file.Options{Mode: file.Loop}), Grace: -1}
	s := start(t, opts)
	const layers = 128
	parent := ""
	for i := range layers {
		name := fmt.Sprint(i)
		_, err := s.Prepare(t.Context(), "active", parent)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(activeUpper(t, s, "active"), name), []byte(name), 0o600))
		must(t, s.Commit(t.Context(), name, "active"))
		convertAll(t, s)
		parent = name
	}
	_, err := s.Prepare(t.Context(), "container", parent)
	must(t, err)
	check := func() {
		t.Helper()
		mounts, err := s.Mounts(t.Context(), "container")
		must(t, err)
		dir := t.TempDir()
		must(t, mount.All(mounts, dir))
		defer func() { must(t, mount.UnmountAll(dir, 0)) }()
		for i := range layers {
			wantContent(t, filepath.Join(dir, fmt.Sprint(i)), fmt.Sprint(i))
		}
		if got := loopDevicesOf(t, root); got != 2*layers {
			t.Errorf("%d loop devices for %d layers", got, layers)
		}
	}
	check()
	must(t, s.Close())
	unmountBelow(t, root)
	if got := loopDevicesOf(t, root); got != 0 {
		t.Errorf("%d loop devices left after everything was unmounted", got)
	}
	s = start(t, opts)
	check()

	must(t, s.Remove(t.Context(), "container"))
	for i := layers - 1; i >= 0; i-- {
		must(t, s.Remove(t.Context(), fmt.Sprint(i)))
	}
	must(t, s.Cleanup(t.Context()))
	if got := loopDevicesOf(t, root); got != 0 {
		t.Errorf("%d loop devices left after collection", got)
	}
	must(t, checkConsistent(t.Context(), s))
}

// loopDevicesOf counts the loop devices whose files are below dir.
func loopDevicesOf(t testing.TB, dir string) int {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must(t, err)
	n := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && strings.HasPrefix(string(b), dir+"/") {
			n++
		}
	}
	return n
}

// TestOptionsOf300LayersFitAPage does what containerd does before it mounts (core/mount: compactLowerdirOption): names relative
// to the common parent of the lowers. The kernel takes one page.
func TestOptionsOf300LayersFitAPage(t *testing.T) {
	s := &Snapshotter{root: "/var/lib/containerd/io.containerd.snapshotter.v1.erofs-snapshotter", overlay: overlayOptions()}
	st := stack{snapshot: 1 << 40, kind: snapshots.KindActive}
	const sixDigits = 36*36*36*36*36*36 - 1
	for i := range uint64(300) {
		st.lowers = append(st.lowers, lower{n: sixDigits - i})
	}
	m := s.mountsOf(st)[0]
	data := strings.Join(compact(t, m.Options), ",")
	t.Logf("%d bytes", len(data))
	if len(data) >= os.Getpagesize() {
		t.Errorf("options take %d bytes, a page is %d", len(data), os.Getpagesize())
	}
}

func compact(t *testing.T, options []string) []string {
	options = slices.Clone(options)
	for i, o := range options {
		list, ok := strings.CutPrefix(o, "lowerdir=")
		if !ok {
			continue
		}
		dirs := strings.Split(list, ":")
		parent := path.Dir(dirs[0]) + "/"
		for j, d := range dirs {
			name, ok := strings.CutPrefix(d, parent)
			if !ok {
				t.Fatalf("%s is not in %s as the others are", d, parent)
			}
			dirs[j] = name
		}
		options[i] = "lowerdir=" + strings.Join(dirs, ":")
	}
	return options
}
