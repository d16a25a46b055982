package imagemount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount/internal/imagetest"
)

func TestWritable(t *testing.T) {
	root, targets := newRoot(t)
	layout, dir := twoLayers(t), filepath.Join(targets, "mnt")
	mount := func() Result {
		t.Helper()
		res, err := mountCommand(t, root, writable(request(layout, dir)))
		must(t, err)
		wantTwoLayers(t, dir)
		return res
	}
	mount()
	must(t, unmountCommand(t, root, dir, false)) // without changes it just goes
	wantEmpty(t, root)

	for name, change := range map[string]func() error{
		"new file":    func() error { return os.WriteFile(filepath.Join(dir, "mine"), []byte("mine"), 0o600) },
		"removal":     func() error { return os.Remove(filepath.Join(dir, "etc/keep")) },
		"root's mode": func() error { return os.Chmod(dir, 0o711) },
	} {
		mount()
		must(t, change())
		err := unmountCommand(t, root, dir, false)
		wantError(t, err, "has changes", "--discard", filepath.Join(root, "snapshots"))
		wantMounted(t, dir, true)
		if err == nil {
			t.Fatal(name)
		}
		must(t, unmountCommand(t, root, dir, true))
		wantMounted(t, dir, false)
		wantEmpty(t, root)
	}
}

// A user's umount, or a reboot, takes the mount but not the changes.
func TestChangesOutliveTheMount(t *testing.T) {
	root, targets := newRoot(t)
	layout, dir := twoLayers(t), filepath.Join(targets, "mnt")
	_, err := mountCommand(t, root, writable(request(layout, dir)))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "mine"), []byte("mine"), 0o600))
	detach(t, dir)

	_, err = mountCommand(t, root, request(layout, dir))
	wantError(t, err, "changes are kept", "--rw", "unmount --discard "+dir)
	_, err = mountCommand(t, root, writable(request(layout+"-other", dir)))
	wantError(t, err, "another image", layout)
	must(t, command(t.Context(), options(root), func(r *Root) error {
		kept, err := r.Unfinished(t.Context())
		if len(kept) != 1 || kept[0].Target != dir || kept[0].Image != layout {
			t.Errorf("unfinished: %+v", kept)
		}
		return err
	}))
	must(t, os.RemoveAll(layout)) // it is brought back without asking for the image
	res, err := mountCommand(t, root, writable(request(layout, dir)))
	must(t, err)
	if !res.BroughtBack {
		t.Errorf("result %+v", res)
	}
	wantTwoLayers(t, dir)
	wantFile(t, filepath.Join(dir, "mine"), "mine")
	detach(t, dir)
	wantError(t, unmountCommand(t, root, dir, false), "has changes")
	must(t, unmountCommand(t, root, dir, true))
	wantEmpty(t, root)
}

// While an overlay lives elsewhere, its upper directory gets no second one.
func TestNotBroughtBackTwice(t *testing.T) {
	root, targets := newRoot(t)
	layout, dir, elsewhere := twoLayers(t), filepath.Join(targets, "mnt"), filepath.Join(targets, "elsewhere")
	_, err := mountCommand(t, root, writable(request(layout, dir)))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600))
	must(t, os.Mkdir(elsewhere, 0o700))
	must(t, unix.Mount(dir, elsewhere, "", unix.MS_BIND, ""))
	detach(t, dir)
	_, err = mountCommand(t, root, writable(request(layout, dir)))
	wantError(t, err, "still lives")
	detach(t, elsewhere)
	_, err = mountCommand(t, root, writable(request(layout, dir)))
	must(t, err)
	must(t, unmountCommand(t, root, dir, true))
	wantEmpty(t, root)
}

// After a reboot all mounts are gone, and the numbers in the records mean other mounts or none.
func TestReboot(t *testing.T) {
	root, targets := newRoot(t)
	layout := twoLayers(t)
	readOnly, unchanged, changed := filepath.Join(targets, "ro"), filepath.Join(targets, "rw"), filepath.Join(targets, "changed")
	for _, dir := range []string{readOnly, unchanged, changed} {
		req := request(layout, dir)
		req.Writable = dir != readOnly
		_, err := mountCommand(t, root, req)
		must(t, err)
	}
	must(t, os.WriteFile(filepath.Join(changed, "mine"), []byte("mine"), 0o600))
	r, err := Open(t.Context(), options(root))
	must(t, err)
	for _, dir := range []string{readOnly, unchanged, changed} {
		m, found, err := r.find(t.Context(), dir)
		if err != nil || !found {
			t.Fatalf("%s: %v, %v", dir, found, err)
		}
		m.at.boot = "the boot before"
		_, err = r.sn.Update(t.Context(), snapshots.Info{Name: mountPrefix + dir, Labels: m.labels()}, "labels")
		must(t, err)
	}
	must(t, r.sn.Close())
	must(t, r.lock.Close())
	detach(t, changed)
	detach(t, unchanged)
	detach(t, readOnly)
	for i := 1; i <= 2; i++ {
		detach(t, filepath.Join(root, "m", fmt.Sprint(i)))
	}

	wantError(t, unmountCommand(t, root, readOnly, false), "there is: "+changed) // it went with its boot
	res, err := mountCommand(t, root, writable(request(layout, changed)))
	must(t, err)
	if !res.BroughtBack {
		t.Errorf("result %+v", res)
	}
	wantTwoLayers(t, changed)
	wantFile(t, filepath.Join(changed, "mine"), "mine")
	must(t, unmountCommand(t, root, changed, true))
	wantEmpty(t, root)
}

// What somebody mounted over a mount of ours, or in its place, is not ours to take away.
func TestForeignMountStays(t *testing.T) {
	root, targets := newRoot(t)
	layout, dir := twoLayers(t), filepath.Join(targets, "mnt")
	_, err := mountCommand(t, root, request(layout, dir))
	must(t, err)
	must(t, unix.Mount("none", dir, "tmpfs", 0, ""))
	wantError(t, unmountCommand(t, root, dir, false), "something else is mounted", "umount "+dir)
	wantMounted(t, dir, true)
	detach(t, dir)
	wantTwoLayers(t, dir)
	f, err := os.Open(filepath.Join(dir, "large"))
	must(t, err)
	wantError(t, unmountCommand(t, root, dir, false), "busy", "fuser")
	must(t, f.Close())
	must(t, unmountCommand(t, root, dir, false))
	wantEmpty(t, root)
}

func TestCommandsTakeTurns(t *testing.T) {
	root, targets := newRoot(t)
	blobs := imagetest.Blobs{}
	layouts := []string{blobs.Layout(t, blobs.Image(base, upper)), blobs.Layout(t, blobs.Image(base, other))}
	both := func(do func(i int, dir string) error) {
		t.Helper()
		var group errgroup.Group
		for i := range 6 {
			group.Go(func() error { return do(i, filepath.Join(targets, fmt.Sprint(i))) })
		}
		must(t, group.Wait())
	}
	both(func(i int, dir string) error {
		_, err := mountCommand(t, root, request(layouts[i%2], dir))
		return err
	})
	for i := range 6 {
		wantFile(t, filepath.Join(targets, fmt.Sprint(i), "etc/keep"), "kept")
	}
	both(func(_ int, dir string) error { return unmountCommand(t, root, dir, false) })
	wantEmpty(t, root)
}

func TestWaitIsBounded(t *testing.T) {
	root, _ := newRoot(t)
	r, err := Open(t.Context(), options(root))
	must(t, err)
	told := 0
	opts := options(root)
	opts.Wait, opts.Waiting = 3*lockEvery, func() { told++ }
	_, err = Open(t.Context(), opts)
	wantError(t, err, "another mount or unmount command", "--wait")
	if told != 1 {
		t.Errorf("told %d times", told)
	}
	ctx, cancel := context.WithCancel(t.Context())
	opts.Wait, opts.Waiting = time.Hour, cancel
	if _, err := Open(ctx, opts); err == nil {
		t.Error("waiting was not ended by the context")
	}
	must(t, r.Close(t.Context()))
}

func TestDaemonRootIsRefused(t *testing.T) {
	root, _ := newRoot(t)
	must(t, os.WriteFile(filepath.Join(root, "daemon.lock"), nil, 0o600))
	_, err := Open(t.Context(), options(root))
	wantError(t, err, "belongs to the daemon", "--root")
}

// Who takes layers over in Locked hands them on in Closing, also when the root cannot be opened.
func TestClosingAfterFailedOpen(t *testing.T) {
	for name, c := range map[string]struct {
		locked error // of Locked
		spoil  bool  // the root cannot be opened
	}{
		"in Locked": {locked: errors.New("made by the test")},
		"later":     {spoil: true},
	} {
		root := t.TempDir()
		if c.spoil {
			must(t, os.Mkdir(filepath.Join(root, "metadata.db"), 0o700))
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		closed := 0
		opts := options(root)
		opts.Locked = func(context.Context) error { return c.locked }
		opts.Closing = func(ctx context.Context) error {
			closed++
			return ctx.Err()
		}
		cancel()
		if _, err := Open(ctx, opts); err == nil || c.locked != nil && !errors.Is(err, c.locked) || c.spoil && errors.Is(err, context.Canceled) {
			t.Errorf("%s: error %v", name, err)
		}
		if closed != 1 {
			t.Errorf("%s: closed %d times", name, closed)
		}
	}
}
