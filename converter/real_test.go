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

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/estargz"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/indextest"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/zstdchunked"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// TestRealLayers makes instances of the lab's images in every lazy form, as skopeo and the library of stargz made them, decodes each extent,
// checks each layer as a whole, and compares with what its tar gives.
func TestRealLayers(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.EROFS)
	for _, image := range []string{"busybox", "nginx"} {
		for _, form := range []string{"estargz", "zstdchunked", "zstdchunked-stargz"} {
			t.Run(image+"-"+form, func(t *testing.T) {
				testenv.Need(t, lab.Image(image+"-"+form))
				for i, l := range realLayers(t, lab.Layout(image+"-"+form), form != "zstdchunked") {
					start := time.Now()
					made, plan := l.lazily(t)
					decoded := time.Now()
					l.check(t, plan)
					t.Logf("layer %d: %d bytes, %d inodes, %d extents of %d bytes; decoded in %v, checked in %v",
						i, len(l.blob), plan.Inodes, len(plan.Extents), plan.DataBytes, decoded.Sub(start), time.Since(decoded))
					compareTrees(t, l, mounted(t, l.eagerly(t)), mounted(t, made))
				}
			})
		}
	}
}

// check expects of a layer that it is what its index says.
func (l lazyLayer) check(t *testing.T, plan converter.Lazy) {
	t.Helper()
	n := 0
	sums, err := converter.CheckTar(t.Context(), bytes.NewReader(l.blob), l.open(t), converter.Limits{}, func(int, []byte) error { n++; return nil })
	must(t, err)
	if want := digest.FromBytes(l.blob); n != len(plan.Extents) || sums.Blob != want {
		t.Errorf("%d extents, digest %s, want %d, %s", n, sums.Blob, len(plan.Extents), want)
	}
}

// TestSamples reads small layers that the tools made of one archive; see "tool" in the files beside them. The skopeo of 2022 wrote podman's
// table of contents with the annotations that stargz still has, and lost attributes without a value: its archive has none.
func TestSamples(t *testing.T) {
	for _, c := range []struct {
		name, format   string
		seconds        bool
		extents, holes int
		prefetch       bool
	}{
		{"estargz", "estargz", true, 8, 0, true},
		{"zstdchunked-stargz", "zstd:chunked/stargz", true, 8, 0, false},
		{"zstdchunked-podman", "zstd:chunked/podman", false, 9, 3, false},
		{"zstdchunked-podman-2022", "zstd:chunked/stargz", false, 12, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := sampleLayer(t, c.name)
			l.seconds = c.seconds
			idx := l.open(t)
			records, _ := indextest.Records(t, idx)
			holes := 0
			for _, r := range records {
				for _, x := range r.Extents {
					if x.Hole {
						holes++
					}
				}
			}
			made, plan := l.lazily(t)
			if idx.Format != c.format || len(plan.Extents) != c.extents || holes != c.holes || plan.Prefetch > 0 != c.prefetch {
				t.Errorf("%s, %d extents, %d holes, prefetch %d", idx.Format, len(plan.Extents), holes, plan.Prefetch)
			}
			l.check(t, plan)
			eager := scanned(t, l.eagerly(t))
			if len(eager) < 20 {
				t.Errorf("only %d paths", len(eager))
			}
			compareTrees(t, l, eager, scanned(t, made))
		})
	}
}

func sampleLayer(t *testing.T, name string) lazyLayer {
	t.Helper()
	blob, err := os.ReadFile(filepath.Join("testdata/layers", name+".blob"))
	must(t, err)
	text, err := os.ReadFile(filepath.Join("testdata/layers", name+".json"))
	must(t, err)
	layer := index.Layer{Size: int64(len(blob))}
	must(t, json.Unmarshal(text, &layer))
	return lazyLayer{layer: layer, blob: blob}
}

// realLayers reads the layers of an OCI layout that have an index.
func realLayers(t testing.TB, layout string, seconds bool) (layers []lazyLayer) {
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
