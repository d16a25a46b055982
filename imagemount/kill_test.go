package imagemount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount/target"
)

// The test of crashes runs this test program again, as a child that mounts, writes and unmounts, and kills itself at the n-th thing that
// it logs: at level debug these are the steps.
const (
	childRoot   = "EROFS_TEST_MOUNT_ROOT"
	childTarget = "EROFS_TEST_MOUNT_TARGET"
	childImage  = "EROFS_TEST_MOUNT_IMAGE"
	childKillAt = "EROFS_TEST_MOUNT_KILL_AT"
	childWrites = "EROFS_TEST_MOUNT_WRITABLE"
)

// childMain says on its standard output where it died.
func childMain(root string) {
	log.SetFlags(0)
	killAt, err := strconv.ParseInt(os.Getenv(childKillAt), 10, 64)
	if err != nil {
		log.Fatal(err)
	}
	var step atomic.Int64
	opts := options(root)
	opts.Log = slog.New(logHandler(func(message string) {
		if step.Add(1) == killAt {
			fmt.Println(message)
			if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
				log.Fatal(err)
			}
			select {}
		}
	}))
	ctx, dir := context.Background(), os.Getenv(childTarget)
	req := request(os.Getenv(childImage), dir)
	req.Writable = os.Getenv(childWrites) != ""
	err = command(ctx, opts, func(r *Root) error {
		_, err := r.Mount(ctx, req)
		return err
	})
	if err == nil && req.Writable {
		err = os.WriteFile(filepath.Join(dir, "mine"), []byte("mine"), 0o600)
	}
	if err == nil {
		err = command(ctx, opts, func(r *Root) error {
			_, err := r.Unmount(ctx, dir, true)
			return err
		})
	}
	if err != nil {
		log.Fatal(err)
	}
}

func TestKilledAtEveryStep(t *testing.T) {
	root, targets := newRoot(t)
	image, dir := twoLayers(t), filepath.Join(targets, "mnt")
	for _, writes := range []string{"", "yes"} {
		seen := map[string]int{}
		for n := 1; ; n++ {
			child := exec.Command(os.Args[0])
			child.Env = append(os.Environ(), childRoot+"="+root, childTarget+"="+dir, childImage+"="+image,
				childKillAt+"="+strconv.Itoa(n), childWrites+"="+writes)
			var out, errs bytes.Buffer
			child.Stdout, child.Stderr = &out, &errs
			err := child.Run()
			var exit *exec.ExitError
			if err != nil && (!errors.As(err, &exit) || !exit.Sys().(syscall.WaitStatus).Signaled()) {
				t.Fatalf("step %d: %v\n%s", n, err, &errs)
			}
			step := strings.TrimSpace(out.String())
			seen[step]++
			afterKill(t, root, dir, fmt.Sprintf("killed at %d (%s), writable %q", n, step, writes))
			if err == nil {
				break // it came to its end
			}
		}
		for _, step := range []string{"image resolved", "layer committed", "mount recorded", "mounted aside", "mount record completed", "mount attached",
			"unmounted", "mount record removed", "snapshot removed"} {
			if seen[step] == 0 {
				t.Errorf("no child was killed at %q: %v", step, seen)
			}
		}
	}
}

// afterKill checks that a next command brings everything in order: what is mounted is known and can be unmounted, with what was written;
// everything else is gone.
func afterKill(t *testing.T, root, dir, when string) {
	t.Helper()
	must(t, command(t.Context(), options(root), func(*Root) error { return nil }))
	_, mounted, err := target.Mounted(dir)
	must(t, err)
	r, err := Open(t.Context(), options(root))
	must(t, err)
	m, found, err := r.find(t.Context(), dir)
	must(t, err)
	if mounted {
		wantTwoLayers(t, dir)
	}
	if mounted && !found {
		t.Errorf("%s: a mount without a record", when)
	}
	if found {
		changed, err := m.changed()
		if err != nil || !mounted && !changed {
			t.Errorf("%s: a record of nothing: %+v, %v", when, m, err)
		}
		_, err = r.Unmount(t.Context(), dir, true)
		must(t, err)
	}
	must(t, r.Close(t.Context()))
	wantEmpty(t, root)
	wantMounted(t, dir, false)
	if t.Failed() {
		t.Fatal(when)
	}
}
