package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
)

// ours are the peers that are compared with the others.
var ours = []string{eager, eagerLocal, eagerAfter}

// startup is how much longer than its link a pull with its first answer may take: for requests, the end of the conversion, the sync and
// the container.
const startup = 800 * time.Millisecond

// linkLimit is the time that a slow link takes for what was sent, and startup.
func (r pullRow) linkLimit() time.Duration { return r.network.linkTime(r.registry) + startup }

// writePulls prints the table, then the ratios.
func writePulls(w io.Writer, rows []pullRow) {
	type key struct {
		network     network
		image, peer string
	}
	order, groups := benchkit.ByKey(rows, func(r pullRow) key { return key{r.network, r.image, r.peer} })
	if len(order) == 0 {
		return
	}
	fmt.Fprintf(w, "Pull and run to the first answer; seconds and MB (10^6), median (min-max). Peers do not sync what they unpack, %q does\n"+
		"in its pull; \"+sync\" is what a syncfs right after the pull took, and is not in the sum:\n\n", eager)
	fmt.Fprintln(w, "| network | image | peer | n | pull | +sync | run | pull + run | snapshots MB | content store MB | registry MB |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|---|---|---|---|---|")
	for _, k := range order {
		g := groups[k]
		bytes := func(field func(pullRow) int64) float64 {
			return benchkit.SummarizeOf(g, func(r pullRow) float64 { return benchkit.Megabytes(field(r)) }).Median
		}
		fmt.Fprintf(w, "| %s | %s | %s | %d | %s | %s | %s | %s | %.1f | %.1f | %.1f |\n", k.network.name, k.image, k.peer, len(g),
			benchkit.Times(g, func(r pullRow) time.Duration { return r.pull }), benchkit.Times(g, func(r pullRow) time.Duration { return r.sync }),
			benchkit.Times(g, func(r pullRow) time.Duration { return r.run }), benchkit.Times(g, pullRow.sum),
			bytes(func(r pullRow) int64 { return r.snapshots }), bytes(func(r pullRow) int64 { return r.content }),
			bytes(func(r pullRow) int64 { return r.registry }))
	}
	var ratios strings.Builder
	for _, k := range order {
		g := groups[k]
		switch k.peer {
		case overlayfs, ctrdErofs:
			for _, our := range ours {
				name := fmt.Sprintf("%s/%s:%s:%s", our, k.peer, k.image, k.network.name)
				mine := groups[key{k.network, k.image, our}]
				durable := func(r pullRow) time.Duration { return r.sum() + r.sync }
				ratios.WriteString(benchkit.RatioLine(name, benchkit.Times(mine, pullRow.sum), benchkit.Times(g, pullRow.sum)))
				ratios.WriteString(benchkit.RatioLine(name+":synced", benchkit.Times(mine, durable), benchkit.Times(g, durable)))
			}
		default:
			if k.network.link.BitsPerSecond > 0 {
				name := fmt.Sprintf("%s/link-limit:%s:%s", k.peer, k.image, k.network.name)
				ratios.WriteString(benchkit.RatioLine(name, benchkit.Times(g, pullRow.sum), benchkit.Times(g, pullRow.linkLimit)))
			}
		}
	}
	benchkit.WriteRatios(w, ratios.String())
}
