package fscache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/backendtest"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/mountapi"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/probe"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// Mounts over fscache need somebody who serves them: integration/vm/fscache has those tests.

// next notes what is left to it.
type next struct{ calls []string }

func (n *next) Mount(_ context.Context, img fsbackend.Image, target string) error {
	n.calls = append(n.calls, "mount "+img.Meta+" "+target)
	return nil
}

func (n *next) Unmount(_ context.Context, target string) error {
	n.calls = append(n.calls, "unmount "+target)
	return nil
}

// Images without cookies are the next one's, and every Unmount is.
func TestNext(t *testing.T) {
	n := &next{}
	b := New(n)
	if err := errors.Join(b.Mount(t.Context(), fsbackend.Image{Meta: "m"}, "t"), b.Unmount(t.Context(), "t")); err != nil {
		t.Error(err)
	}
	if want := []string{"mount m t", "unmount t"}; !slices.Equal(n.calls, want) {
		t.Errorf("got %q", n.calls)
	}
}

func image(t *testing.T) fsbackend.Image {
	img := backendtest.TinyImage(t, t.TempDir(), 1)
	img.Cookies = &fsbackend.Cookies{Domain: "testdomain", Meta: "testmeta", Data: "testdata"}
	return img
}

// A kernel that cannot says so before anybody is asked for anything.
func TestNotSupported(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	if probe.HaveFscache() == nil {
		t.Log("this kernel can")
		return
	}
	target := t.TempDir()
	err := New(&next{}).Mount(t.Context(), image(t), target)
	if !errors.Is(err, fsbackend.ErrNotSupported) || !strings.Contains(err.Error(), target) {
		t.Errorf("got %v", err)
	}
	if mounted, err := fsbackend.Mounted(target); mounted || err != nil {
		t.Errorf("mounted: %t, %v", mounted, err)
	}
	t.Log(err)
}

func TestNothingIsMounted(t *testing.T) {
	testenv.Need(t, testenv.Root)
	ended, end := context.WithCancel(t.Context())
	end()
	for name, c := range map[string]struct {
		ctx  context.Context
		do   func(*fsbackend.Image)
		want error
	}{
		"ended":      {ended, func(*fsbackend.Image) {}, context.Canceled},
		"no meta":    {t.Context(), func(i *fsbackend.Image) { i.Meta += "x" }, unix.ENOENT},
		"no data":    {t.Context(), func(i *fsbackend.Image) { i.Data += "x" }, unix.ENOENT},
		"directory":  {t.Context(), func(i *fsbackend.Image) { i.Data = filepath.Dir(i.Data) }, nil},
		"long names": {t.Context(), func(i *fsbackend.Image) { i.Cookies.Meta = strings.Repeat("x", 300) }, nil},
	} {
		img, target := image(t), t.TempDir()
		c.do(&img)
		err := New(&next{}).Mount(c.ctx, img, target)
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), "testdomain") {
			t.Errorf("%s: %v", name, err)
		}
		if mounted, err := fsbackend.Mounted(target); mounted || err != nil {
			t.Errorf("%s: mounted: %t, %v", name, mounted, err)
		}
	}
}

func TestExplain(t *testing.T) {
	for in, want := range map[error]string{
		mountapi.ErrNoFscache: "CONFIG_EROFS_FS_ONDEMAND",
		unix.ENODEV:           "modprobe erofs",
		unix.EEXIST:           "in use",
		unix.EBUSY:            "in use",
		unix.ENOBUFS:          "less free space",
		unix.EIO:              "less free space",
		unix.EBADMSG:          "dmesg",
	} {
		err := explain(fmt.Errorf("attempt: %w", in))
		if !errors.Is(err, in) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v became %v", in, err)
		}
	}
	if err := explain(unix.EPERM); err != unix.EPERM {
		t.Errorf("EPERM became %v", err)
	}
}

func TestStale(t *testing.T) {
	dir := t.TempDir()
	root, sys, table := filepath.Join(dir, "root"), filepath.Join(dir, "sys"), filepath.Join(dir, "mountinfo")
	long := "m1." + strings.Repeat("0a", 32)
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"now,live", ("now," + long)[:36], "old,dead", "features"} {
		if err := os.MkdirAll(filepath.Join(sys, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	lines := ""
	for _, l := range []string{
		root + "/m/dead - erofs dead ro,user_xattr,acl,cache_strategy=readaround,fsid=dead",
		root + "/m/live - erofs live ro,fsid=live,domain_id=now",
		root + "/m/long - erofs long ro,fsid=" + long,
		root + "/m/file - erofs /x/meta.erofs ro,device=1",
		root + "/m/other - overlay overlay ro,fsid=dead",
		root + "/m/a\\040gone - erofs gone ro,fsid=gone,domain_id=other",
		root + "x/m/dead - erofs dead ro,fsid=dead",
		root + " - erofs dead ro,fsid=dead",
	} {
		lines += "50 49 0:40 / " + strings.Replace(l, " - ", " ro,nosuid - ", 1) + "\n"
	}
	if err := os.WriteFile(table, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(root, link); err != nil {
		t.Fatal(err)
	}
	got, err := stale(table, sys, link, "now")
	if want := []string{link + "/m/a gone", link + "/m/dead"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	got, err = stale(table, sys, root, "new")
	if want := []string{root + "/m/a gone", root + "/m/dead", root + "/m/live", root + "/m/long"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if _, err := Stale(filepath.Join(dir, "none"), "now"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of no directory: %v", err)
	}
	if got, err := Stale(root, "now"); err != nil || len(got) != 0 {
		t.Errorf("of the running system: %q, %v", got, err)
	}
}
