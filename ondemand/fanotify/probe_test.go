package fanotify

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestProbe(t *testing.T) {
	testenv.Need(t, testenv.Root, preContent)
	for range 20 {
		if err := Probe(t.TempDir()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestProbeSaysNo(t *testing.T) {
	testenv.Need(t, testenv.Root)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if err := Probe(dir); !errors.Is(err, ErrNotSupported) {
		t.Errorf("got %v, want no", err)
	}
}
