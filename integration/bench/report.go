package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
)

// writePulls prints the table, then the ratios.
func writePulls(w io.Writer, rows []pullRow) {
	type key struct{ image, peer string }
	order, groups := benchkit.ByKey(rows, func(r pullRow) key { return key{r.image, r.peer} })
	if len(order) == 0 {
		return
	}
	fmt.Fprintf(w, "Pull over %s and run to the first answer; seconds and MB (10^6), median (min-max). Peers do not sync what they unpack, %q does\n"+
		"in its pull; \"+sync\" is what a syncfs right after the pull took, and is not in the sum:\n\n", network, eager)
	fmt.Fprintln(w, "| image | peer | n | pull | +sync | run | pull + run | snapshots MB | content store MB | registry MB |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|---|---|---|---|")
	for _, k := range order {
		g := groups[k]
		bytes := func(field func(pullRow) int64) float64 {
			return benchkit.SummarizeOf(g, func(r pullRow) float64 { return benchkit.Megabytes(field(r)) }).Median
		}
		fmt.Fprintf(w, "| %s | %s | %d | %s | %s | %s | %s | %.1f | %.1f | %.1f |\n", k.image, k.peer, len(g),
			benchkit.Times(g, func(r pullRow) time.Duration { return r.pull }), benchkit.Times(g, func(r pullRow) time.Duration { return r.sync }),
			benchkit.Times(g, func(r pullRow) time.Duration { return r.run }), benchkit.Times(g, pullRow.sum),
			bytes(func(r pullRow) int64 { return r.snapshots }), bytes(func(r pullRow) int64 { return r.content }),
			bytes(func(r pullRow) int64 { return r.registry }))
	}
	var ratios strings.Builder
	for _, k := range order {
		if k.peer == eager || k.peer == eagerAfter {
			continue
		}
		theirs := groups[k]
		for _, our := range []string{eager, eagerAfter} {
			ours := groups[key{k.image, our}]
			name := fmt.Sprintf("%s/%s:%s:%s", our, k.peer, k.image, network)
			durable := func(r pullRow) time.Duration { return r.sum() + r.sync }
			ratios.WriteString(benchkit.RatioLine(name, benchkit.Times(ours, pullRow.sum), benchkit.Times(theirs, pullRow.sum)))
			ratios.WriteString(benchkit.RatioLine(name+":synced", benchkit.Times(ours, durable), benchkit.Times(theirs, durable)))
		}
	}
	benchkit.WriteRatios(w, ratios.String())
}
