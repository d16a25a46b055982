package render

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"path/filepath"
	"strings"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

// A picture is a grid, filled row by row. 128 cells of 8 pixels fill a page, and 4,096 show 256 KiB each of a layer of 1 GiB.
const (
	pictureColumns = 128
	pictureRows    = 32
	cellPixels     = 8
	marginPixels   = 8
	textPixels     = 20 // height of a line of text
)

// PictureCells is how many cells a picture of a layer has.
func PictureCells(l admin.Layer) int { return cellsFor(l, pictureColumns*pictureRows) }

// A Picture draws which parts of a layer are present.
type Picture func(w io.Writer, l admin.Layer, cells []float64) error

// PictureFor returns what writes pictures into a file of that name.
func PictureFor(file string) (Picture, error) {
	switch suffix := strings.ToLower(filepath.Ext(file)); suffix {
	case ".svg":
		return SVG, nil
	case ".png":
		return PNG, nil
	default:
		return nil, fmt.Errorf("%s: a picture is written as .svg or .png, not as %q", file, suffix)
	}
}

var (
	missing = color.RGBA{0xe2, 0xe5, 0xe9, 0xff}
	present = color.RGBA{0x15, 0x6f, 0x8a, 0xff}
)

// tint is between the two colours. What is present in part can be told from both, however small or large the part.
func tint(part float64) color.RGBA {
	if part > 0 && part < 1 {
		part = 0.2 + 0.6*part
	}
	mix := func(from, to uint8) uint8 { return uint8(float64(from) + (float64(to)-float64(from))*part + 0.5) }
	return color.RGBA{mix(missing.R, present.R), mix(missing.G, present.G), mix(missing.B, present.B), 0xff}
}

// gridSize is the size of the grid of a picture in pixels.
func gridSize(cells int) (width, height int) {
	rows := (cells + pictureColumns - 1) / pictureColumns
	return min(cells, pictureColumns) * cellPixels, rows * cellPixels
}

// PNG is the grid alone.
func PNG(w io.Writer, _ admin.Layer, cells []float64) error {
	width, height := gridSize(len(cells))
	img := image.NewRGBA(image.Rect(0, 0, width+2*marginPixels, height+2*marginPixels))
	draw.Draw(img, img.Bounds(), image.White, image.Point{}, draw.Src)
	for i, part := range cells {
		x, y := marginPixels+i%pictureColumns*cellPixels, marginPixels+i/pictureColumns*cellPixels
		// A pixel less than the cell leaves a line between them.
		draw.Draw(img, image.Rect(x, y, x+cellPixels-1, y+cellPixels-1), image.NewUniform(tint(part)), image.Point{}, draw.Src)
	}
	return png.Encode(w, img)
}

// SVG is the grid with a title and a legend.
func SVG(w io.Writer, l admin.Layer, cells []float64) error {
	b := bufio.NewWriter(w) // keeps the first error until Flush
	gridWidth, gridHeight := gridSize(len(cells))
	width := max(gridWidth, pictureColumns*cellPixels) + 2*marginPixels // the text has its place
	top := marginPixels + 2*textPixels
	height := top + gridHeight + textPixels + 2*marginPixels
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="14">`+"\n", width, height)
	fmt.Fprintf(b, "<title>%s</title>\n", escape("Fill map of "+mapTitle(l)))
	fmt.Fprintf(b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", width, height)
	text(b, marginPixels, marginPixels+textPixels-6, mapTitle(l))
	text(b, marginPixels, marginPixels+2*textPixels-6, mapSummary(l))
	for first := 0; first < len(cells); first += pictureColumns {
		svgRow(b, cells[first:min(first+pictureColumns, len(cells))], top+first/pictureColumns*cellPixels)
	}
	legend(b, top+gridHeight+marginPixels, l, len(cells))
	fmt.Fprintln(b, "</svg>")
	return b.Flush()
}

// svgRow draws equal neighbours as one rectangle: 4,096 single ones take a browser noticeable time.
func svgRow(w io.Writer, cells []float64, y int) {
	for first := 0; first < len(cells); {
		end := first + 1
		for end < len(cells) && tint(cells[end]) == tint(cells[first]) {
			end++
		}
		box(w, marginPixels+first*cellPixels, y, (end-first)*cellPixels, tint(cells[first]))
		first = end
	}
}

// legend explains the colours and how much a cell is.
func legend(w io.Writer, y int, l admin.Layer, cells int) {
	x := marginPixels
	for _, entry := range []struct {
		part float64
		text string
	}{{1, "present"}, {0.5, "in part"}, {0, "missing"}} {
		box(w, x, y+4, cellPixels, tint(entry.part))
		text(w, x+2*cellPixels, y+textPixels-7, entry.text)
		x += 10 * cellPixels
	}
	if l.Lazy != nil && cells > 0 {
		text(w, x, y+textPixels-7, fmt.Sprintf("%d cells of %s, row by row", cells, size((l.Lazy.Bytes+int64(cells)-1)/int64(cells))))
	}
}

func box(w io.Writer, x, y, width int, c color.RGBA) {
	// As in PNG, a line between cells; not between equal neighbours of a row.
	fmt.Fprintf(w, `<rect x="%d" y="%d" width="%d" height="%d" fill="#%02x%02x%02x"/>`+"\n", x, y, width-1, cellPixels-1, c.R, c.G, c.B)
}

func text(w io.Writer, x, y int, s string) {
	fmt.Fprintf(w, `<text x="%d" y="%d">%s</text>`+"\n", x, y, escape(s))
}

// escape makes text of XML.
func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}
