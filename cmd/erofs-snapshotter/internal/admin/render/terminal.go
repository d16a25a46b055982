package render

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

// terminal is the view that draws over what it drew before. It stays on the normal screen, so what it showed last remains when it ends.
type terminal struct {
	out  io.Writer
	size func() (columns, rows int, err error)
	// drawn is how many rows the last frame has.
	drawn int
}

// barColumns is the width of a progress bar, and labelColumns that of what stands before it. mostFilling is how many lazy layers have a row:
// most of them stand still at a time.
const (
	barColumns   = 20
	labelColumns = 10
	mostFilling  = 10
)

func (v *terminal) show(s admin.Status, before *admin.Status) error {
	return v.draw(frame(s, before))
}

func (v *terminal) lost(cause error) error {
	return v.draw([]string{"no answer: " + firstLine(cause.Error()), "trying again, ctrl-C ends"})
}

// draw replaces the last frame. A frame must not be higher than the screen, nor a row wider: the cursor could not be brought back.
func (v *terminal) draw(frame []string) error {
	columns, rows, err := v.size()
	if err != nil || columns < 1 || rows < 2 {
		columns, rows = 80, 24
	}
	// The cursor stands below the last row.
	if most := rows - 1; len(frame) > most {
		hidden := len(frame) - most + 1
		frame = append(frame[:most-1:most-1], fmt.Sprintf("… and %s", count(hidden, "more line", "more lines")))
	}
	var b bytes.Buffer
	if v.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dF", v.drawn)
	}
	b.WriteString("\x1b[J")
	for _, line := range frame {
		b.WriteString(cut(line, columns-1) + "\n")
	}
	v.drawn = len(frame)
	_, err = v.out.Write(b.Bytes())
	return err
}

// frame is what is shown of a status. What goes on comes first, because a small screen has no room for the rest.
func frame(s admin.Status, before *admin.Status) []string {
	var rows, ended []string
	for _, a := range alarms(s, span) {
		rows = append(rows, a.rows()...)
	}
	r := ratesOf(s, before)
	for _, pull := range s.Pulls {
		text := summary(pull, r, s.Time)
		if !pull.Ended.IsZero() {
			ended = append(ended, text)
			continue
		}
		rows = append(rows, text)
		for _, l := range pull.Layers {
			rows = append(rows, layerRow(l, r))
		}
	}
	for _, l := range otherWork(s) {
		rows = append(rows, layerRow(l, r))
	}
	rows = append(rows, fillRows(s, before)...)
	return append(append(rows, ended...), totals(s))
}

// fillRows are about the lazy layers of which something is missing.
func fillRows(s admin.Status, before *admin.Status) []string {
	var rows []string
	g := growthOf(s, before)
	layers := filling(s, g)
	for i, l := range layers {
		if i == mostFilling {
			return append(rows, fmt.Sprintf("  … and %s", count(len(layers)-i, "more partial layer", "more partial layers")))
		}
		row := fmt.Sprintf("  %s %-*s%s %s", short(name(l)), labelColumns, orNone(stateOf(l)), bar(g.progress(l).part()), fillLine(l, g))
		if n := len(l.Lazy.InFlight); n > 0 {
			row += fmt.Sprintf(", %s", count(n, "read waits", "reads wait"))
		}
		rows = append(rows, row)
	}
	return rows
}

func layerRow(l admin.PullLayer, r rates) string {
	p := progressOfLayer(l, r)
	text := fmt.Sprintf("  %s %-*s", short(l.Digest), labelColumns, orNone(l.State))
	switch l.State {
	case admin.Fetching:
		text += fmt.Sprintf("%s %s", bar(p.part()), p.amount())
		if p.rate > 0 {
			text += fmt.Sprintf(", %s, %s left", p.speed(), p.left())
		}
	case admin.Ready, admin.Done:
		text += fmt.Sprintf("%s %s", bar(1), size(l.BlobBytes))
	default:
		text += fmt.Sprintf("%s %s", bar(0), size(l.BlobBytes))
	}
	if l.Source != "" {
		text += "  " + clean(l.Source)
	}
	return text
}

// bar draws a part between 0 and 1.
func bar(part float64) string {
	full := int(part * barColumns)
	return "[" + strings.Repeat("=", full) + strings.Repeat(" ", barColumns-full) + "]"
}
