package integration

import (
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/treediff/goerofs"
)

// goErofs lets the library go-erofs read the image.
func (f *fidelity) goErofs(t *testing.T) {
	const maxContent = 256 << 20
	got, err := goerofs.Scan(t.Context(), f.image.meta, f.image.data, maxContent)
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		if got[i].Size > maxContent {
			t.Logf("contents of %q not read: %d bytes", got[i].Path, got[i].Size)
		}
	}
	same(t, f.want, got)
}
