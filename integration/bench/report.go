package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
)

// eagers and lazies are our peers, which are compared with the others.
var (
	eagers = []string{eager, eagerLocal, eagerAfter}
	lazies = []string{lazy, lazyZstd}
)

// startup is how much longer than its link a pull with its first answer may take: for requests, the end of the conversion, the sync and
// the container.
const startup = 800 * time.Millisecond

// linkLimit is the time that a slow link takes for what was sent, and startup.
func (r pullRow) linkLimit() time.Duration { return r.network.linkTime(r.registry) + startup }

// pullKey is what medians are of.
type pullKey struct {
	network     network
	image, peer string
}

func (r pullRow) key() pullKey { return pullKey{r.network, r.image, r.peer} }

// writePulls prints the table, then the ratios.
func writePulls(w io.Writer, rows []pullRow) {
	order, groups := benchkit.ByKey(rows, pullRow.key)
	if len(order) == 0 {
		return
	}
	fmt.Fprintf(w, "Pull and run to the first answer; seconds and MB (10^6), median (min-max). Peers do not sync what they unpack, %q does\n"+
		"in its pull; \"+sync\" is what a syncfs right after the pull took, and is not in the sum. \"link\" is what had come over the link at the\n"+
		"end of the pull and at the answer, with what is fetched ahead:\n\n", eager)
	fmt.Fprintln(w, "| network | image | peer | n | pull | +sync | run | pull + run | snapshots MB | content store MB | registry MB | link MB |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|---|---|---|---|---|---|")
	for _, k := range order {
		g := groups[k]
		bytes := func(field func(pullRow) int64) float64 {
			return benchkit.SummarizeOf(g, func(r pullRow) float64 { return benchkit.Megabytes(field(r)) }).Median
		}
		fmt.Fprintf(w, "| %s | %s | %s | %d | %s | %s | %s | %s | %.1f | %.1f | %.1f | %.1f, %.1f |\n", k.network.name, k.image, k.peer, len(g),
			benchkit.Times(g, func(r pullRow) time.Duration { return r.pull }), benchkit.Times(g, func(r pullRow) time.Duration { return r.sync }),
			benchkit.Times(g, func(r pullRow) time.Duration { return r.run }), benchkit.Times(g, pullRow.sum),
			bytes(func(r pullRow) int64 { return r.snapshots }), bytes(func(r pullRow) int64 { return r.content }),
			bytes(func(r pullRow) int64 { return r.registry }),
			bytes(func(r pullRow) int64 { return r.linkPull }), bytes(func(r pullRow) int64 { return r.link }))
	}
	var ratios strings.Builder
	for _, k := range order {
		writeRatios(&ratios, k, groups)
	}
	benchkit.WriteRatios(w, ratios.String())
}

// writeRatios prints what compares with k: us with a peer, or our eager pulls with the link.
func writeRatios(w *strings.Builder, k pullKey, groups map[pullKey][]pullRow) {
	g := groups[k]
	switch {
	case k.peer == overlayfs || k.peer == ctrdErofs:
		durable := func(r pullRow) time.Duration { return r.sum() + r.sync }
		for _, our := range slices.Concat(eagers, lazies) {
			name := fmt.Sprintf("%s/%s:%s:%s", our, k.peer, k.image, k.network.name)
			mine := groups[pullKey{k.network, k.image, our}]
			w.WriteString(benchkit.RatioLine(name, benchkit.Times(mine, pullRow.sum), benchkit.Times(g, pullRow.sum)))
			w.WriteString(benchkit.RatioLine(name+":synced", benchkit.Times(mine, durable), benchkit.Times(g, durable)))
		}
	case k.peer == stargz:
		bytes := func(r pullRow) float64 { return float64(r.link) }
		for _, our := range slices.Concat(eagers, lazies) {
			mine := groups[pullKey{k.network, k.image, our}]
			where := ":" + k.image + ":" + k.network.name
			w.WriteString(benchkit.RatioLine(our+"/"+stargz+where, benchkit.Times(mine, pullRow.sum), benchkit.Times(g, pullRow.sum)))
			w.WriteString(benchkit.RatioLine(our+"/"+stargz+"-bytes"+where, benchkit.SummarizeOf(mine, bytes), benchkit.SummarizeOf(g, bytes)))
		}
	case slices.Contains(eagers, k.peer) && k.network.link.BitsPerSecond > 0:
		name := fmt.Sprintf("%s/link-limit:%s:%s", k.peer, k.image, k.network.name)
		w.WriteString(benchkit.RatioLine(name, benchkit.Times(g, pullRow.sum), benchkit.Times(g, pullRow.linkLimit)))
	}
}
