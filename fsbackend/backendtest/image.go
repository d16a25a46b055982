package backendtest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/internal/tinyimage"
)

// FileName is the name of the file that every image of the suite holds in its root directory.
const FileName = tinyimage.FileName

// Content is what /file of image n holds: two blocks and a tail, different for each n.
func Content(n int) []byte {
	const size = 2*4096 + 1000
	line := fmt.Sprintf("this is image %d\n", n)
	return bytes.Repeat([]byte(line), size/len(line)+1)[:size]
}

// TinyImage writes image n into dir.
func TinyImage(t testing.TB, dir string, n int) fsbackend.Image {
	t.Helper()
	return ImageOf(t, dir, Content(n))
}

// ImageOf writes an image into dir whose /file has the given content: full blocks, and a tail of 1 to 2560 bytes.
func ImageOf(t testing.TB, dir string, content []byte) fsbackend.Image {
	t.Helper()
	meta, data, err := tinyimage.Build(content)
	if err != nil {
		t.Fatal(err)
	}
	img := fsbackend.Image{Meta: filepath.Join(dir, "meta.erofs"), Data: filepath.Join(dir, "data")}
	for path, b := range map[string][]byte{img.Meta: meta, img.Data: data} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return img
}
