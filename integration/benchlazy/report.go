package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
)

// writeRandom prints a table of microseconds, and our time divided by that of the layer that never was lazy.
func writeRandom(w io.Writer, rows []randomRow) {
	if len(rows) == 0 {
		return
	}
	fmt.Fprint(w, "Random reads of 4 KiB that are present; microseconds per read of all readers together, median (min-max):\n\n",
		"| layer | memory | readers | n | lazy | never lazy |\n|---|---|---|---|---|---|\n")
	var ratios strings.Builder
	order, groups := benchkit.ByKey(rows, func(r randomRow) randomCase { return r.randomCase })
	for _, c := range order {
		_, of := benchkit.ByKey(groups[c], func(r randomRow) bool { return r.lazy })
		lazy, eager := benchkit.SummarizeOf(of[true], randomRow.perRead), benchkit.SummarizeOf(of[false], randomRow.perRead)
		name := strings.Split(c.String(), ":")
		fmt.Fprintf(w, "| %s | %s | %s | %d | %s | %s |\n", name[0], name[1], name[2], lazy.N, lazy, eager)
		ratios.WriteString(benchkit.RatioLine("random4k/native:"+c.String(), lazy, eager))
	}
	benchkit.WriteRatios(w, ratios.String())
}

// writeSequential prints a table, and our speed divided by that of curl.
func writeSequential(w io.Writer, rows []sequentialRow) {
	if len(rows) == 0 {
		return
	}
	fmt.Fprint(w, "A whole layer, read for the first time, and its blob, downloaded; seconds, median (min-max):\n\n",
		"| layer | by | n | blob MB | s | blob MB/s |\n|---|---|---|---|---|---|\n")
	type key struct{ layer, way string }
	var ratios strings.Builder
	order, groups := benchkit.ByKey(rows, func(r sequentialRow) key { return key{r.layer, r.way} })
	for _, k := range order {
		g := groups[k]
		took := benchkit.Times(g, func(r sequentialRow) time.Duration { return r.took })
		speed := benchkit.SummarizeOf(g, sequentialRow.speed)
		fmt.Fprintf(w, "| %s | %s | %d | %.1f | %s | %.0f |\n", k.layer, k.way, len(g), benchkit.Megabytes(g[0].blobBytes), took, speed.Median/1e6)
		if k.way == lazyRead {
			for _, way := range curls {
				theirs := benchkit.SummarizeOf(groups[key{k.layer, way}], sequentialRow.speed)
				ratios.WriteString(benchkit.RatioLine("sequential/"+way+":"+k.layer, speed, theirs))
			}
		}
	}
	benchkit.WriteRatios(w, ratios.String())
}

// writeMany prints a table, and memory and time divided by what they may be.
func writeMany(w io.Writer, rows []manyRow) {
	if len(rows) == 0 {
		return
	}
	bytes := func(field func(manyRow) int64) benchkit.Summary {
		return benchkit.SummarizeOf(rows, func(r manyRow) float64 { return float64(field(r)) / (1 << 20) })
	}
	times := func(field func(manyRow) time.Duration) benchkit.Summary { return benchkit.Times(rows, field) }
	limit := func(v float64) benchkit.Summary { return benchkit.Summarize([]float64{v}) }
	daemon, after := bytes(func(r manyRow) int64 { return r.daemon }), bytes(func(r manyRow) int64 { return r.daemonAfter })
	keeper, keeperAfter := bytes(func(r manyRow) int64 { return r.keeper }), bytes(func(r manyRow) int64 { return r.keeperAfter })
	denying := bytes(func(r manyRow) int64 { return r.keeperDenying })
	ready := times(func(r manyRow) time.Duration { return r.ready })
	fmt.Fprintf(w, "%d lazy layers, mounted and incomplete; median (min-max) of %d:\n\n| | |\n|---|---|\n", rows[0].layers, len(rows))
	for _, line := range []struct {
		name  string
		value benchkit.Summary
	}{
		{"pull of all, s", times(func(r manyRow) time.Duration { return r.pull })},
		{"mount of all, s", times(func(r manyRow) time.Duration { return r.mount })},
		{"daemon, MiB", daemon}, {"keeper, MiB", keeper},
		{"daemon after a restart, MiB", after}, {"keeper after a restart of the daemon, MiB", keeperAfter},
		{"keeper without a daemon, MiB", denying},
		{"ready after SIGKILL, s", ready},
		{"first read of missing data then, s", times(func(r manyRow) time.Duration { return r.firstRead })},
	} {
		fmt.Fprintf(w, "| %s | %s |\n", line.name, line.value)
	}
	benchkit.WriteRatios(w, benchkit.RatioLine("rss/limit:daemon", daemon, limit(daemonLimit>>20))+
		benchkit.RatioLine("rss/limit:daemon-restarted", after, limit(daemonLimit>>20))+
		benchkit.RatioLine("rss/limit:keeper", keeper, limit(keeperLimit>>20))+
		benchkit.RatioLine("rss/limit:keeper-denying", denying, limit(keeperLimit>>20))+
		benchkit.RatioLine("ready/limit", ready, limit(readyLimit.Seconds())))
}
