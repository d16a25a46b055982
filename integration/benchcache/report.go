package main

import (
	"fmt"
	"io"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
)

// baseline is what ratios of time compare with.
const baseline = "buffered"

// report writes a table of medians and the lines for programs.
func report(w io.Writer, results []result) {
	fmt.Fprint(w, "| case | variant | read MB | seconds (min-max) | files MB | data MB | meta MB | sum / read | Cached MB |\n|---|---|---|---|---|---|---|---|---|\n")
	var ratios string
	names, byCase := benchkit.ByKey(results, func(r result) string { return r.testCase })
	for _, name := range names {
		order, byVariant := benchkit.ByKey(byCase[name], func(r result) string { return r.variant })
		base := benchkit.SummarizeOf(byVariant[baseline], seconds)
		for _, v := range order {
			rs := byVariant[v]
			took, kept, read := benchkit.SummarizeOf(rs, seconds), benchkit.SummarizeOf(rs, keptMB), benchkit.SummarizeOf(rs, readMB)
			if read.Median == 0 {
				// A program: what it loaded, by the pages that the plainest variant has.
				read = benchkit.SummarizeOf(byVariant[baseline], filesMB)
			}
			fmt.Fprintf(w, "| %s | %s | %.1f | %.3f (%.3f-%.3f) | %.1f | %.1f | %.1f | %s | %.1f |\n", name, v, read.Median,
				took.Median, took.Min, took.Max, median(rs, filesMB), median(rs, dataMB), median(rs, metaMB), share(kept, read), median(rs, allMB))
			ratios += benchkit.RatioLine("cache/read:"+name+":"+v, kept, read)
			if v != baseline {
				ratios += benchkit.RatioLine("time:"+v+"/"+baseline+":"+name, took, base)
			}
		}
	}
	benchkit.WriteRatios(w, ratios)
}

func seconds(r result) float64 { return r.took.Seconds() }
func readMB(r result) float64  { return benchkit.Megabytes(r.read) }
func filesMB(r result) float64 { return benchkit.Megabytes(r.cached.files) }
func dataMB(r result) float64  { return benchkit.Megabytes(r.cached.data) }
func metaMB(r result) float64  { return benchkit.Megabytes(r.cached.meta) }
func allMB(r result) float64   { return benchkit.Megabytes(r.cached.all) }
func keptMB(r result) float64  { return filesMB(r) + dataMB(r) + metaMB(r) }

func median(rs []result, field func(result) float64) float64 {
	return benchkit.SummarizeOf(rs, field).Median
}

// share is "-" where nothing was counted, as with a program that loads what is in memory already.
func share(kept, read benchkit.Summary) string {
	if read.Median == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", kept.Median/read.Median)
}
