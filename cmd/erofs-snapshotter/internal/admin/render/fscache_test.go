package render

import (
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

// TestFscache: the kernel's cache has a line, which says what is wrong only if something is, and the keeper's says that it holds it.
func TestFscache(t *testing.T) {
	keeper := &admin.Keeper{Address: "/run/k.sock", Connected: true, Pid: 77, Device: true}
	for want, f := range map[string]*admin.Fscache{
		"fscache: 1 layer mounted, 4.0 KiB copied into /r/fscache/es1\n": {Dir: "/r/fscache/es1", Layers: 1, CopiedBytes: 4096},
		"fscache: 0 layers mounted, 8.0 KiB copied into /r, 4.0 KiB freed again; 2 reads failed because the disk is full": {
			Dir: "/r", CopiedBytes: 8192, CulledBytes: 4096, NoRoom: 2,
		},
	} {
		var b strings.Builder
		if err := Table(&b, admin.Status{Keeper: keeper, Fscache: f}); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{want, "process 77, holds 0 layers and the kernel's cache"} {
			if !strings.Contains(b.String(), want) {
				t.Errorf("%q is not in\n%s", want, &b)
			}
		}
	}
	var b strings.Builder
	if err := Table(&b, admin.Status{}); err != nil || strings.Contains(b.String(), "fscache") {
		t.Errorf("without a cache: %v\n%s", err, &b)
	}
}
