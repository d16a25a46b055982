package render

import (
	"fmt"
	"io"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

// Exported writes what an export of the cache has.
func Exported(w io.Writer, e admin.Exported) error {
	p := page{w: w}
	rows := [][]string{{"LAYER", "INSTANCE", "EXTENTS", "SIZE"}}
	var sum admin.Amount
	for _, l := range e.Layers {
		rows = append(rows, []string{short(l.Digest), short(l.Instance), fmt.Sprint(l.Extents), size(l.Bytes)})
		sum.Extents, sum.Bytes = sum.Extents+l.Extents, sum.Bytes+l.Bytes
	}
	if len(e.Layers) > 0 {
		p.table(rows)
	}
	p.line("%s exported, %s", count(len(e.Layers), "layer", "layers"), amount(sum))
	if n := e.DamagedExtents; n > 0 {
		p.line("%s left out: the disk has other bytes than it should; the daemon's log names the layers", count(int(n), "extent was", "extents were"))
	}
	return p.err
}

// Imported writes what became of an import of the cache.
func Imported(w io.Writer, r admin.ImportReport) error {
	p := page{w: w}
	rows := [][]string{{"LAYER", "INSTANCE", "OFFERED", "NEW", "HERE ALREADY", "WRONG", "RESULT"}}
	var offered, fresh admin.Amount
	for _, l := range r.Layers {
		rows = append(rows, []string{short(l.Digest), short(l.Instance), amount(l.Offered), amount(l.New), amount(l.Present), amount(l.Wrong), result(l)})
		offered.Extents, offered.Bytes = offered.Extents+l.Offered.Extents, offered.Bytes+l.Offered.Bytes
		fresh.Extents, fresh.Bytes = fresh.Extents+l.New.Extents, fresh.Bytes+l.New.Bytes
	}
	if len(r.Layers) > 0 {
		p.table(rows)
	}
	p.line("%s, %s offered, %s new", count(len(r.Layers), "layer", "layers"), amount(offered), amount(fresh))
	return p.err
}

// ImportProblem says in one line why an import was not all right; "" if it was. A layer that nobody has pulled here is no problem.
func ImportProblem(r admin.ImportReport) string {
	var wrong, refused int64
	for _, l := range r.Layers {
		wrong += l.Wrong.Extents
		if l.Result == admin.Refused {
			refused++
		}
	}
	text := clean(r.Error)
	if text != "" {
		text = "the rest was not imported: " + text
	}
	for _, problem := range []struct {
		n         int64
		one, many string
	}{
		{wrong, "extent is not what its layer says and was not imported", "extents are not what their layers say and were not imported"},
		{refused, "layer could not be imported", "layers could not be imported"},
	} {
		if problem.n == 0 {
			continue
		}
		if text != "" {
			text += "; "
		}
		text += count(int(problem.n), problem.one, problem.many)
	}
	return text
}

func amount(a admin.Amount) string {
	if a.Extents == 0 {
		return "-"
	}
	return fmt.Sprintf("%d (%s)", a.Extents, size(a.Bytes))
}

// result says what became of a layer.
func result(l admin.ImportedLayer) string {
	switch l.Result {
	case admin.Unknown:
		return "not here: pull the image first"
	case admin.Whole:
		return "here as a whole"
	case admin.Refused:
		return "failed: " + orNone(l.Cause)
	case admin.Imported:
		if l.Wrong.Extents > 0 {
			return "WRONG in part"
		}
		return "ok"
	}
	return orNone(l.Result)
}
