package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// table is a CSV file with the raw values. Each row is on disk when write returns: an interrupted benchmark keeps what it has.
type table struct {
	file *os.File
	csv  *csv.Writer
}

func newTable(path string, header []string) (*table, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	t := &table{file: f, csv: csv.NewWriter(f)}
	if err := t.write(header); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return t, nil
}

func (t *table) write(fields []string) error {
	if err := t.csv.Write(fields); err != nil {
		return err
	}
	t.csv.Flush()
	return t.csv.Error()
}

func (t *table) close() error { return t.file.Close() }

func megabytes(n int64) float64 { return float64(n) / 1e6 }

// writePulls prints the table, then the ratios.
func writePulls(w io.Writer, rows []pullRow) {
	type key struct{ image, peer string }
	order, groups := byKey(rows, func(r pullRow) key { return key{r.image, r.peer} })
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
			return summarizeOf(g, func(r pullRow) float64 { return megabytes(field(r)) }).median
		}
		fmt.Fprintf(w, "| %s | %s | %d | %s | %s | %s | %s | %.1f | %.1f | %.1f |\n", k.image, k.peer, len(g),
			times(g, func(r pullRow) time.Duration { return r.pull }), times(g, func(r pullRow) time.Duration { return r.sync }),
			times(g, func(r pullRow) time.Duration { return r.run }), times(g, pullRow.sum),
			bytes(func(r pullRow) int64 { return r.snapshots }), bytes(func(r pullRow) int64 { return r.content }),
			bytes(func(r pullRow) int64 { return r.registry }))
	}
	var ratios strings.Builder
	for _, k := range order {
		if k.peer == eager {
			continue
		}
		ours, theirs := groups[key{k.image, eager}], groups[k]
		name := fmt.Sprintf("%s/%s:%s:%s", eager, k.peer, k.image, network)
		durable := func(r pullRow) time.Duration { return r.sum() + r.sync }
		ratios.WriteString(ratioLine(name, times(ours, pullRow.sum), times(theirs, pullRow.sum)))
		ratios.WriteString(ratioLine(name+":synced", times(ours, durable), times(theirs, durable)))
	}
	writeRatios(w, ratios.String())
}

// writeRatios ends a table, also one without a ratio because one side was not measured.
func writeRatios(w io.Writer, lines string) {
	if lines != "" {
		lines = "```\n" + lines + "```\n\n"
	}
	fmt.Fprint(w, "\n", lines)
}

// times is the summary of a duration in seconds.
func times[T any](rows []T, field func(T) time.Duration) summary {
	return summarizeOf(rows, func(r T) float64 { return field(r).Seconds() })
}

// writeConversions prints the table, one row for each layer and compression, then the ratios.
func writeConversions(w io.Writer, rows []convertRow) {
	order, groups := byKey(rows, func(r convertRow) source { return source{r.layer, r.compression} })
	if len(order) == 0 {
		return
	}
	fmt.Fprintf(w, "One layer into EROFS, read from the page cache; seconds and MB (10^6), median (min-max). %q syncs:\n\n| layer | compression | tar MB | n |", eager)
	for _, c := range columns {
		fmt.Fprintf(w, " %s |", c.name)
	}
	fmt.Fprintf(w, " MB of %s | MB of %s |\n|---|---|---|---|---|---|", eager, mkfsErofs)
	fmt.Fprintln(w, strings.Repeat("---|", len(columns)))
	var ratios strings.Builder
	for _, src := range order {
		g := groups[src]
		_, byMethod := byKey(g, func(r convertRow) string { return r.method })
		fmt.Fprintf(w, "| %s | %s | %.1f | %d |", src.layer, src.compression, megabytes(g[0].tarBytes), len(byMethod[eager]))
		ours := times(byMethod[eager], convertRow.synced)
		for _, c := range columns {
			theirs := times(byMethod[c.method], c.value)
			fmt.Fprintf(w, " %s |", theirs)
			if c.method != eager {
				ratios.WriteString(ratioLine(fmt.Sprintf("convert/%s:%s:%s", c.name, src.layer, src.compression), ours, theirs))
			}
		}
		for _, name := range []string{eager, mkfsErofs} {
			size := summarizeOf(byMethod[name], func(r convertRow) float64 { return megabytes(r.diskBytes) })
			fmt.Fprintf(w, " %.1f |", size.median)
		}
		fmt.Fprintln(w)
	}
	writeRatios(w, ratios.String())
}
