package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
)

// key is a line of the table.
type key struct{ layer, form, method string }

// comparison is a ratio of speeds: that of ours divided by that of the peer, from medians. More is better.
type comparison struct {
	name             string
	form, ours, peer string
}

var comparisons = []comparison{
	{"targz/igzip", gz, ours, igzip},
	{"targz/unpigz", gz, ours, unpigz},
	{"targz/ctrd-erofs", gz, ours, ctrdErofs},
	{"targz/ctrd-erofs-fsync", gz, ours, ctrdErofsSynced},
	{"targz/go-erofs", gz, ours, goErofs},
	{"targz/gnu-tar", gz, ours, gnuTar},
	{"targz/ctrd-apply", gz, ours, ctrdApply},
	{"tar/cat-fsync", plain, ours, catFile},
	{"tarzst/zstd", zst, ours, zstd},
	{"inflate/klauspost", gz, inflateOnly, inflateKlauspost},
	{"inflate/stdlib", gz, inflateOnly, inflateStdlib},
	{"inflate/igzip", gz, inflateOnly, igzip},
	{"inflate/checkpoints-1MiB", gz, checkpoints1, inflateOnly}, // 0.97: they cost 3 %
	{"inflate/checkpoints-4MiB", gz, checkpoints4, inflateOnly},
}

// The memory that converting a layer may take.
const (
	baseKiB  = 64 << 10
	inodeKiB = 0.6
)

// write prints the table, then the ratios.
func write(w io.Writer, rows []row) {
	if len(rows) == 0 {
		return
	}
	_, groups := benchkit.ByKey(rows, func(r row) key { return key{r.layer, r.form, r.method} })
	byLayer, _ := benchkit.ByKey(rows, func(r row) string { return r.layer })
	fmt.Fprintf(w, "One layer, read from the page cache. MB are 10^6 bytes, of the tar and on the disk; seconds and processor seconds are\n"+
		"medians, peak RSS is the largest, \"/ %s\" the quotient of two speeds:\n\n", igzip)
	fmt.Fprintf(w, "| layer | input | method | n | MB/s best | MB/s median | s | CPU s | peak RSS MiB | / %s | MB on disk | remarks |\n", igzip)
	fmt.Fprintln(w, "|---|---|---|---|---|---|---|---|---|---|---|---|")
	var ratios strings.Builder
	for _, layer := range byLayer {
		for _, job := range workOf(methods) {
			if g := groups[key{layer, job.form, job.name}]; len(g) > 0 {
				writeLine(w, g, benchkit.Times(groups[key{layer, gz, igzip}], wall))
			}
		}
		for _, c := range comparisons {
			mine, theirs := groups[key{layer, c.form, c.ours}], groups[key{layer, c.form, c.peer}]
			ratios.WriteString(benchkit.RatioLine(c.name+":"+layer, benchkit.Times(theirs, wall), benchkit.Times(mine, wall)))
		}
		ratios.WriteString(sizes(layer, groups[key{layer, gz, ours}]))
	}
	benchkit.WriteRatios(w, ratios.String())
}

func writeLine(w io.Writer, g []row, reference benchkit.Summary) {
	r, times := g[0], benchkit.Times(g, wall)
	megabytes := benchkit.Megabytes(r.tarBytes)
	quotient, disk := "-", "-"
	if reference.N > 0 {
		quotient = fmt.Sprintf("%.2f", reference.Median/times.Median)
	}
	if r.diskBytes > 0 {
		disk = fmt.Sprintf("%.1f", benchkit.Megabytes(r.diskBytes))
	}
	fmt.Fprintf(w, "| %s | %s | %s | %d | %.0f | %.0f | %.2f | %.2f | %.1f | %s | %s | %s |\n", r.layer, r.form, r.method, len(g),
		megabytes/times.Min, megabytes/times.Median, times.Median, benchkit.Times(g, func(r row) time.Duration { return r.CPU }).Median,
		peakKiB(g).Max/1024, quotient, disk, r.Remark)
}

// sizes are the ratios of what we use and what that is measured by. Less is better.
func sizes(layer string, g []row) string {
	if len(g) == 0 {
		return ""
	}
	of := func(n float64) benchkit.Summary { return benchkit.Summarize([]float64{n}) }
	r := g[0]
	return benchkit.RatioLine("disk/tar:"+layer, of(float64(r.diskBytes)), of(float64(r.tarBytes))) +
		benchkit.RatioLine("rss/limit:"+layer, of(peakKiB(g).Max), of(baseKiB+inodeKiB*float64(r.Inodes)))
}

func wall(r row) time.Duration { return r.Wall }

func peakKiB(g []row) benchkit.Summary {
	return benchkit.SummarizeOf(g, func(r row) float64 { return float64(r.PeakKiB) })
}
