package converter_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/estargz"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/zstdchunked"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// TestRealLayers makes instances of the lab's images in every lazy form, as skopeo and the library of stargz made them, decodes each extent,
// checks each layer as a whole, and compares with what its tar gives.
func TestRealLayers(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	for _, image := range []string{"busybox", "nginx", "node", "scipy"} {
		for _, form := range []string{"estargz", "zstdchunked", "zstdchunked-stargz"} {
			t.Run(image+"-"+form, func(t *testing.T) {
				testenv.Need(t, lab.Image(image+"-"+form))
				for i, l := range realLayers(t, lab.Layout(image+"-"+form), form != "zstdchunked") {
					start := time.Now()
					made, plan := l.lazily(t)
					decoded := time.Now()
					n := 0
					sums, err := converter.CheckTar(t.Context(), bytes.NewReader(l.blob), l.open(t), converter.Limits{}, func(i int, b []byte) error { n++; return nil })
					must(t, err)
					t.Logf("layer %d: %d bytes, %d inodes, %d extents of %d bytes; decoded in %v, checked in %v",
						i, sums.BlobBytes, plan.Inodes, n, plan.DataBytes, decoded.Sub(start), time.Since(decoded))
					if n != len(plan.Extents) {
						t.Errorf("%d extents, want %d", n, len(plan.Extents))
					}
					compareTrees(t, l, mounted(t, l.eagerly(t)), mounted(t, made))
				}
			})
		}
	}
}

// realLayers reads the layers of an OCI layout that have an index.
func realLayers(t *testing.T, layout string, seconds bool) (layers []lazyLayer) {
	t.Helper()
	blob := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(layout, name))
		must(t, err)
		return b
	}
	path := func(d ocispec.Descriptor) string { return filepath.Join("blobs/sha256", d.Digest.Encoded()) }
	var top ocispec.Index
	must(t, json.Unmarshal(blob("index.json"), &top))
	var manifest ocispec.Manifest
	must(t, json.Unmarshal(blob(path(top.Manifests[0])), &manifest))
	for _, d := range manifest.Layers {
		l := lazyLayer{layer: index.Layer{Annotations: d.Annotations, Size: d.Size}, blob: blob(path(d)), seconds: seconds}
		_, err := estargz.Open(l.layer, bytes.NewReader(l.blob), index.Limits{})
		if errors.Is(err, index.ErrNotLazy) {
			_, err = zstdchunked.Open(l.layer, bytes.NewReader(l.blob), index.Limits{})
		}
		if errors.Is(err, index.ErrNotLazy) {
			t.Logf("%s: %v", strings.TrimPrefix(d.Digest.String(), "sha256:")[:12], err)
			continue
		}
		layers = append(layers, l)
	}
	if len(layers) == 0 {
		t.Fatal("no layer has an index")
	}
	return layers
}
