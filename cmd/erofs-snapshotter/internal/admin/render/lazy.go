package render

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

// lazies lists the layers that are filled while they are read, those that somebody waits for first.
func (p *page) lazies(s admin.Status) {
	rows := [][]string{{"LAZY", "PRESENT", "FAULTS", "HITS", "FAILED", "P50", "P99", "ASKED", "FETCHED", "WAITING"}}
	for _, l := range filling(s, growth{}) {
		z := l.Lazy
		rows = append(rows, []string{short(name(l)), fmt.Sprintf("%d%% of %s", percent(z), size(z.Bytes)), fmt.Sprint(z.Faults), hitRatio(z),
			fmt.Sprint(z.Failed), latency(z.Latency.P50), latency(z.Latency.P99), size(z.DemandedBytes), size(z.FetchedBytes.Total()),
			fmt.Sprint(len(z.InFlight))})
	}
	if len(rows) > 1 {
		p.line("")
		p.table(rows)
	}
}

// growth is what has come since the status before: bytes, by identity, of the layers that were partial then.
type growth struct {
	bytes map[string]int64
	took  time.Duration
}

func growthOf(s admin.Status, before *admin.Status) growth {
	g := growth{bytes: map[string]int64{}}
	if before == nil {
		return g
	}
	g.took = s.Time.Sub(before.Time)
	had := map[string]int64{}
	for _, l := range before.Layers {
		if l.Lazy != nil && l.State == admin.Partial {
			had[identity(l)] = l.Lazy.PresentBytes
		}
	}
	for _, l := range s.Layers {
		if bytes, ok := had[identity(l)]; ok && l.Lazy != nil {
			g.bytes[identity(l)] = l.Lazy.PresentBytes - bytes
		}
	}
	return g
}

// progress says how far a layer is filled and how fast that goes.
func (g growth) progress(l admin.Layer) progress {
	p := progress{done: l.Lazy.PresentBytes, total: l.Lazy.Bytes}
	if took := g.took.Seconds(); took > 0 {
		p.rate = max(float64(g.bytes[identity(l)])/took, 0)
	}
	return p
}

// active says whether a layer is filled just now, or somebody waits for that.
func (g growth) active(l admin.Layer) bool {
	return len(l.Lazy.InFlight) > 0 || g.bytes[identity(l)] > 0
}

// identity tells a layer from one that was removed and had the same name.
func identity(l admin.Layer) string {
	return l.Instance + " " + l.Created.UTC().Format(time.RFC3339Nano)
}

// stateOf is what people should know first of a layer.
func stateOf(l admin.Layer) string {
	switch {
	case l.Lazy != nil && l.Lazy.Poisoned:
		return "poisoned"
	case l.Lazy != nil && l.Lazy.Orphan:
		return "orphan"
	}
	return l.State
}

// filling are the layers of which something is missing that may still come: first those that somebody waits for, then those that grow, then
// the others.
func filling(s admin.Status, g growth) []admin.Layer {
	var awaited, growing, others []admin.Layer
	for _, l := range s.Layers {
		switch {
		case l.Lazy == nil || l.State != admin.Partial || l.Lazy.Poisoned:
		case len(l.Lazy.InFlight) > 0:
			awaited = append(awaited, l)
		case g.active(l):
			growing = append(growing, l)
		default:
			others = append(others, l)
		}
	}
	return slices.Concat(awaited, growing, others)
}

// fillLine is the text for one layer that is filled.
func fillLine(l admin.Layer, g growth) string {
	p := g.progress(l)
	text := fmt.Sprintf("%s of %s, %d%%", size(p.done), size(p.total), percent(l.Lazy))
	if p.rate > 0 {
		text += fmt.Sprintf(", %s, %s left", p.speed(), p.left())
	}
	if l.Lazy.Faults > 0 {
		text += fmt.Sprintf(", %s, %s hits", count(int(l.Lazy.Faults), "fault", "faults"), hitRatio(l.Lazy))
	}
	if l.Lazy.Orphan {
		text += ", removed but still in use"
	}
	return text
}

// percent is how much is present, from 0 to 100; 100 is said of a layer only that has everything.
func percent(z *admin.Lazy) int {
	if z.PresentExtents >= z.Extents {
		return 100
	}
	p := progress{done: z.PresentBytes, total: z.Bytes}
	return min(99, int(100*p.part()))
}

// hitRatio is the part of the requests that were answered at once. 100% is said only if all were.
func hitRatio(z *admin.Lazy) string {
	if z.Faults <= 0 {
		return "-"
	}
	if z.Hits >= z.Faults {
		return "100%"
	}
	return fmt.Sprintf("%d%%", max(0, min(99, int(100*float64(z.Hits)/float64(z.Faults)))))
}

// latency writes seconds with two digits: 85µs, 1.2ms, 340ms, 2.5s, 1m12s.
func latency(seconds float64) string {
	switch {
	case seconds <= 0:
		return "-"
	case seconds < 0.9995e-3:
		return fmt.Sprintf("%.0fµs", math.Ceil(seconds*1e6))
	case seconds < 9.95e-3:
		return fmt.Sprintf("%.1fms", seconds*1e3)
	case seconds < 0.9995:
		return fmt.Sprintf("%.0fms", seconds*1e3)
	case seconds < 9.95:
		return fmt.Sprintf("%.1fs", seconds)
	case seconds > math.MaxInt64/float64(time.Second)/2:
		return "-"
	}
	return span(time.Duration(seconds * float64(time.Second)))
}

// keeper is one line about the process that stands in for the daemon.
func (p *page) keeper(s admin.Status) {
	k := s.Keeper
	if k == nil || !k.Connected { // the lack of one is among the alarms
		return
	}
	text := "keeper at " + orNone(k.Address)
	if k.Pid > 0 {
		text += fmt.Sprintf(", process %d", k.Pid)
	}
	text += ", holds " + count(k.Held, "layer", "layers")
	if k.Device {
		text += " and the kernel's cache"
	}
	if k.Denied > 0 {
		text += fmt.Sprintf(", has answered %s with EIO while no daemon was there", count(int(k.Denied), "read", "reads"))
	}
	if !k.Since.IsZero() {
		text += ", connected for " + span(s.Time.Sub(k.Since))
	}
	p.line("")
	p.line("%s", text)
}

// fscache is one line about the kernel's cache of files.
func (p *page) fscache(s admin.Status) {
	f := s.Fscache
	if f == nil {
		return
	}
	text := fmt.Sprintf("fscache: %s mounted, %s copied into %s", count(f.Layers, "layer", "layers"), size(f.CopiedBytes), orNone(f.Dir))
	if f.CulledBytes > 0 {
		text += fmt.Sprintf(", %s freed again", size(f.CulledBytes))
	}
	if f.NoRoom > 0 {
		text += fmt.Sprintf("; %s failed because the disk is full, or has less free than fscache.bstop", count(int(f.NoRoom), "read", "reads"))
	}
	p.line("")
	p.line("%s", text)
}

// wrap cuts words into rows of at most so many characters, as far as no single word is longer.
func wrap(words []string, columns int) []string {
	var rows []string
	var row strings.Builder
	for i, word := range words {
		if i < len(words)-1 {
			word += ","
		}
		if row.Len() > 0 && row.Len()+1+len(word) > columns {
			rows = append(rows, row.String())
			row.Reset()
		}
		if row.Len() > 0 {
			row.WriteByte(' ')
		}
		row.WriteString(word)
	}
	return append(rows, row.String())
}
