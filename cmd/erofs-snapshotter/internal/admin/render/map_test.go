package render

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"image/png"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

// full has only cells that have everything.
func full(n int) []float64 { return slices.Repeat([]float64{1}, n) }

// pattern has cells of all kinds: all, nothing, and parts that grow.
func pattern(n int) []float64 {
	cells := make([]float64, n)
	for i := range cells {
		switch {
		case i < n/4:
			cells[i] = 1
		case i < n/2:
			cells[i] = float64(i-n/4) / float64(n/4)
		}
	}
	return cells
}

func TestMap(t *testing.T) {
	large := lazyLayers()[1]
	small := lazyLayers()[2]
	small.Lazy.Bytes, small.Source = 6*smallestCell-1, ""
	never := admin.Layer{Instance: baseID, Digest: base, Kind: "erofs", State: admin.Complete}
	for _, test := range []struct {
		file    string
		l       admin.Layer
		columns int
	}{{"map.txt", large, 80}, {"mapsmall.txt", small, 80}, {"mapnarrow.txt", large, 1}, {"mapfull.txt", never, 40}} {
		t.Run(test.file, func(t *testing.T) {
			cells := pattern(TextCells(test.l, test.columns))
			if test.l.Lazy == nil {
				cells = full(len(cells))
			}
			var b strings.Builder
			if err := Map(&b, test.l, cells, test.columns); err != nil {
				t.Fatal(err)
			}
			golden(t, test.file, b.String())
		})
	}
}

func TestShade(t *testing.T) {
	for part, want := range map[float64]rune{0: '·', 1e-9: '░', 0.33: '░', 0.34: '▒', 0.67: '▓', 0.999999: '▓', 1: '█'} {
		if got := shade(part); got != want {
			t.Errorf("%v: %c, want %c", part, got, want)
		}
	}
}

func TestSVG(t *testing.T) {
	l := lazyLayers()[1]
	l.Source = `registry.example/"<&` // is text, not XML
	var b bytes.Buffer
	if err := SVG(&b, l, pattern(300)); err != nil {
		t.Fatal(err)
	}
	golden(t, "map.svg", b.String())
	for d := xml.NewDecoder(&b); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestPNG(t *testing.T) {
	var b bytes.Buffer
	cells := pattern(300)
	if err := PNG(&b, admin.Layer{}, cells); err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(&b)
	if err != nil {
		t.Fatal(err)
	}
	if size := img.Bounds().Size(); size.X != 128*8+16 || size.Y != 3*8+16 {
		t.Errorf("size %s", size)
	}
	for i, part := range cells {
		x, y := 8+i%128*8+3, 8+i/128*8+3
		if got, want := fmt.Sprint(img.At(x, y)), fmt.Sprint(tint(part)); got != want {
			t.Errorf("cell %d: colour %s, want %s", i, got, want)
		}
	}
}

// TestTint: a cell that lacks a little, or has a little, does not look as if it had all or nothing.
func TestTint(t *testing.T) {
	if tint(0) != missing || tint(1) != present {
		t.Error("the ends have other colours")
	}
	if few, most := tint(1e-9), tint(1-1e-9); int(missing.R)-int(few.R) < 30 || int(most.R)-int(present.R) < 30 {
		t.Errorf("colours %v and %v", few, most)
	}
}

func TestPictureFails(t *testing.T) {
	broken := errors.New("disk full")
	failing := writeFunc(func([]byte) (int, error) { return 0, broken })
	for _, draw := range []Picture{SVG, PNG} {
		if err := draw(failing, lazyLayers()[1], pattern(4096)); !errors.Is(err, broken) {
			t.Errorf("error %v", err)
		}
	}
}

func TestPictureFor(t *testing.T) {
	for file, ok := range map[string]bool{"a.svg": true, "/x/b.PNG": true, "a.jpg": false, "svg": false, ".png/x": false, "": false} {
		draw, err := PictureFor(file)
		if (err == nil) != ok || (draw != nil) != ok {
			t.Errorf("%s: error %v", file, err)
		}
		if !ok && !strings.Contains(err.Error(), ".svg or .png") {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestCells(t *testing.T) {
	layer := func(bytes int64) admin.Layer { return admin.Layer{Lazy: &admin.Lazy{Bytes: bytes}} }
	for _, test := range []struct {
		bytes         int64
		text, picture int
	}{{-1, 1, 1}, {0, 1, 1}, {4097, 2, 2}, {100 * 4096, 2 * 67, 100}, {1 << 40, 16 * 67, 4096}} {
		if text, picture := TextCells(layer(test.bytes), 80), PictureCells(layer(test.bytes)); text != test.text || picture != test.picture {
			t.Errorf("%d bytes: %d and %d cells, want %d and %d", test.bytes, text, picture, test.text, test.picture)
		}
	}
	// The server refuses more.
	if n := TextCells(layer(1<<40), 1<<10); n > admin.MaxCells || PictureCells(layer(1<<40)) > admin.MaxCells {
		t.Errorf("%d cells", n)
	}
}

func TestMappable(t *testing.T) {
	for want, l := range map[string]admin.Layer{
		"":             lazyLayers()[0],
		"is directory": {Kind: "directory", State: admin.Complete},
		"still made":   {Kind: "erofs", State: admin.Building},
		"is poisoned":  lazyLayers()[3],
	} {
		err := Mappable(l)
		if got := fmt.Sprint(err); want == "" && err != nil || want != "" && !strings.Contains(strings.Replace(got, "a directory", "directory", 1), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}
