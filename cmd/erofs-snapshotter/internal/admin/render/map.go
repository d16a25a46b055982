package render

import (
	"fmt"
	"io"
	"strings"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

const (
	// kindDirectory is the kind of layers that have no data blob.
	kindDirectory = "directory"
	// smallestCell is a block of EROFS: there is nothing to see within.
	smallestCell = 4096
	// mapRows is how high a map on a terminal is at most, so that it fits the smallest one with what stands around it.
	mapRows = 16
	// offsetColumns is what the offsets before the rows need, "1023.9 MiB" and two spaces.
	offsetColumns = 12
	// minMapColumns is how many cells a row has on a terminal that is too narrow.
	minMapColumns = 8
)

// Mappable is an error for a layer that has no fill map.
func Mappable(l admin.Layer) error {
	switch {
	case l.Kind == kindDirectory:
		return fmt.Errorf("layer %s is a directory, which has no data blob and no fill map", clean(l.Instance))
	case l.State == admin.Building:
		return fmt.Errorf("layer %s is still made and has no fill map yet\n  erofs-snapshotter status --watch shows how far it is", short(name(l)))
	case l.Lazy != nil && l.Lazy.Poisoned:
		return fmt.Errorf("layer %s is poisoned: nothing comes to it any more, so it has no fill map", short(name(l)))
	}
	return nil
}

// TextCells is how many cells Map shows of a layer on a terminal of so many columns. A small layer has less than would fit.
func TextCells(l admin.Layer, columns int) int {
	inRow := textRow(columns)
	cells := cellsFor(l, inRow*mapRows)
	if cells <= inRow {
		return cells
	}
	return (cells + inRow - 1) / inRow * inRow // a whole last row, so that the end is seen
}

func textRow(columns int) int { return max(columns-1-offsetColumns, minMapColumns) }

// cellsFor is how many cells of at least a block a layer has, but not more than most.
func cellsFor(l admin.Layer, most int) int {
	if l.Lazy == nil {
		return most
	}
	return int(min(max((l.Lazy.Bytes+smallestCell-1)/smallestCell, 1), int64(most)))
}

// Map draws which parts of a layer are present: one character for each cell, with shades for cells of which a part is.
func Map(w io.Writer, l admin.Layer, cells []float64, columns int) error {
	p := page{w: w}
	p.line("%s", mapTitle(l))
	p.line("%s", mapSummary(l))
	p.line("")
	inRow := textRow(columns)
	for first := 0; first < len(cells); first += inRow {
		var row strings.Builder
		for _, part := range cells[first:min(first+inRow, len(cells))] {
			row.WriteRune(shade(part))
		}
		p.line("%*s  %s", offsetColumns-2, offset(l, first, len(cells)), row.String())
	}
	p.line("")
	legend := "█ present  ▓▒░ in part  · missing"
	if l.Lazy != nil && len(cells) > 0 {
		legend += "  one character is " + size((l.Lazy.Bytes+int64(len(cells))-1)/int64(len(cells)))
	}
	p.line("%s", legend)
	return p.err
}

// shade is full for what has everything only, and a dot for what has nothing only.
func shade(part float64) rune {
	switch {
	case part >= 1:
		return '█'
	case part <= 0:
		return '·'
	}
	return []rune("░▒▓")[min(int(part*3), 2)]
}

// offset is where a cell begins; empty if the length is not known.
func offset(l admin.Layer, cell, cells int) string {
	if l.Lazy == nil {
		return ""
	}
	return size(int64(float64(l.Lazy.Bytes) / float64(cells) * float64(cell)))
}

// mapTitle says which layer it is.
func mapTitle(l admin.Layer) string {
	text := fmt.Sprintf("layer %s, instance %s", short(l.Digest), short(l.Instance))
	if l.Lazy != nil && l.Lazy.Format != "" {
		text += ", " + clean(l.Lazy.Format)
	}
	if l.Source != "" {
		text += ", from " + clean(l.Source)
	}
	return text
}

// mapSummary says how much is present.
func mapSummary(l admin.Layer) string {
	if l.Lazy == nil {
		return "100% present: the layer is not lazy"
	}
	z := l.Lazy
	text := fmt.Sprintf("%d%% present: %s of %s", percent(z), size(z.PresentBytes), size(z.Bytes))
	if z.Extents > 0 {
		text += fmt.Sprintf(", %d of %s", z.PresentExtents, count(z.Extents, "extent", "extents"))
	}
	return text
}
