package main

import (
	"strings"
	"testing"
	"time"
)

func rowOf(form, method string, wall time.Duration) row {
	return row{layer: "node", form: form, method: method, tarBytes: 6e6, report: report{Wall: wall, CPU: wall / 2, PeakKiB: 32 << 10}}
}

func TestWrite(t *testing.T) {
	imported := rowOf(gz, ours, 3*time.Second)
	imported.diskBytes, imported.Inodes = 3e6, 10
	again := imported
	again.Wall, again.PeakKiB = time.Second, 16<<10
	rows := []row{
		rowOf(gz, checkpoints1, 4*time.Second), imported, again, rowOf(gz, igzip, time.Second), rowOf(gz, inflateOnly, 2*time.Second),
		rowOf(plain, ours, time.Second), rowOf(plain, catFile, time.Second/2),
	}
	var text strings.Builder
	write(&text, rows)
	for _, want := range []string{
		"| node | tar.gz | import | 2 | 6 | 3 | 2.00 | 1.50 | 32.0 | 0.50 | 3.0 |  |\n",
		"| node | tar.gz | igzip | 1 | 6 | 6 | 1.00 | 0.50 | 32.0 | 1.00 | - |  |\n",
		"ratio targz/igzip:node 0.50\n",
		"ratio tar/cat-fsync:node 0.50\n",
		"ratio inflate/igzip:node 0.50\n",
		"ratio inflate/checkpoints-1MiB:node 0.50\n",
		"ratio disk/tar:node 0.50\n",
		"ratio rss/limit:node 0.50\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
	for _, absent := range []string{"unpigz", "zstd", "go-erofs"} {
		if strings.Contains(text.String(), absent) {
			t.Errorf("%s was not measured:\n%s", absent, &text)
		}
	}
	if strings.Index(text.String(), "| import |") > strings.Index(text.String(), "| checkpoints-1MiB |") {
		t.Errorf("lines are not in the order of the methods:\n%s", &text)
	}
}

// TestColumns: a table whose header and rows differ is not a table.
func TestColumns(t *testing.T) {
	var text strings.Builder
	write(&text, []row{rowOf(gz, ours, time.Second)})
	counts := map[int]bool{}
	for line := range strings.Lines(text.String()) {
		if strings.HasPrefix(line, "|") {
			counts[strings.Count(line, "|")] = true
		}
	}
	if len(counts) != 1 {
		t.Errorf("rows have different numbers of columns:\n%s", &text)
	}
	if got, want := len(row{}.fields()), len(header); got != want {
		t.Errorf("the CSV has %d fields and %d names", got, want)
	}
}

// TestComparisons: a ratio whose name is misspelled would never be printed.
func TestComparisons(t *testing.T) {
	known := map[string]bool{}
	for _, w := range workOf(methods) {
		known[w.name+" "+w.form] = true
	}
	for _, c := range comparisons {
		if !known[c.ours+" "+c.form] || !known[c.peer+" "+c.form] {
			t.Errorf("%s compares what is not measured", c.name)
		}
	}
}
