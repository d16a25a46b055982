package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestWritePulls(t *testing.T) {
	row := func(peer string, pull, sync, run float64) pullRow {
		d := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
		return pullRow{image: "scipy", peer: peer, pull: d(pull), sync: d(sync), run: d(run), snapshots: 2e6, content: 3e6, registry: 4e6}
	}
	var text strings.Builder
	writePulls(&text, []pullRow{
		row(ctrdErofs, 3, 2, 1), row(eager, 1.5, 0, 0.5), row(ctrdErofs, 5, 2, 1), row(eager, 2.5, 0, 0.5), row(overlayfs, 9, 1, 1),
	})
	for _, want := range []string{
		"| scipy | ctrd-erofs | 2 | 4.00 (3.00-5.00) | 2.00 (2.00-2.00) | 1.00 (1.00-1.00) | 5.00 (4.00-6.00) | 2.0 | 3.0 | 4.0 |\n",
		"| scipy | overlayfs | 1 | 9.00 | 1.00 | 1.00 | 10.00 | 2.0 | 3.0 | 4.0 |\n",
		"\nratio eager/ctrd-erofs:scipy:loopback 0.50\n",
		"\nratio eager/ctrd-erofs:scipy:loopback:synced 0.36\n",
		"\nratio eager/overlayfs:scipy:loopback 0.25\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
	if strings.Contains(text.String(), "eager/eager") {
		t.Errorf("we are compared with ourselves:\n%s", &text)
	}
}

func TestWriteConversions(t *testing.T) {
	row := func(method string, s, sync time.Duration) convertRow {
		return convertRow{layer: "base", compression: "plain", method: method, tarBytes: 5e6, time: s * time.Second, sync: sync * time.Second, diskBytes: 4e6}
	}
	var text strings.Builder
	writeConversions(&text, []convertRow{row(eager, 3, 0), row(catFile, 1, 1), row(mkfsErofs, 2, 4)})
	for _, want := range []string{
		"| base | plain | 5.0 | 1 | 3.00 | 2.00 | - | 2.00 | 6.00 | 4.0 | 4.0 |\n",
		"ratio convert/cat+fsync:base:plain 1.50\n",
		"ratio convert/mkfs.erofs:base:plain 1.50\n",
		"ratio convert/mkfs.erofs+fsync:base:plain 0.50\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
	if strings.Contains(text.String(), "decompress:") {
		t.Errorf("a method without a measurement has a ratio:\n%s", &text)
	}
}

// TestColumns: a table whose header and rows differ is not a table.
func TestColumns(t *testing.T) {
	var pulls, conversions strings.Builder
	writePulls(&pulls, []pullRow{{image: "i", peer: eager}})
	writeConversions(&conversions, []convertRow{{layer: "l", compression: "plain", method: eager}})
	for _, text := range []string{pulls.String(), conversions.String()} {
		counts := map[int]bool{}
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "|") {
				counts[strings.Count(line, "|")] = true
			}
		}
		if len(counts) != 1 {
			t.Errorf("rows have different numbers of columns:\n%s", text)
		}
	}
	if got, want := len(pullRow{}.fields()), len(pullHeader); got != want {
		t.Errorf("the CSV of pulls has %d fields and %d names", got, want)
	}
	if got, want := len(convertRow{}.fields()), len(convertHeader); got != want {
		t.Errorf("the CSV of conversions has %d fields and %d names", got, want)
	}
}

// TestTable: what was written must be on disk before the table is closed.
func TestTable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raw.csv")
	table, err := newTable(path, []string{"a", "b"})
	if err != nil {
		t.Fatal(err)
	}
	defer table.close()
	if err := table.write([]string{"1", `ready, "set"`}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if want := "a,b\n1,\"ready, \"\"set\"\"\"\n"; err != nil || string(b) != want {
		t.Errorf("file holds %q, error %v, want %q", b, err, want)
	}
}
