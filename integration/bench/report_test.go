package main

import (
	"strings"
	"testing"
	"time"
)

func TestWritePulls(t *testing.T) {
	row := func(peer string, pull, sync, run float64) pullRow {
		d := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
		return pullRow{network: networks[0], image: "scipy", peer: peer, pull: d(pull), sync: d(sync), run: d(run), snapshots: 2e6, content: 3e6, registry: 4e6}
	}
	var text strings.Builder
	writePulls(&text, []pullRow{
		row(ctrdErofs, 3, 2, 1), row(eager, 1.5, 0, 0.5), row(ctrdErofs, 5, 2, 1), row(eager, 2.5, 0, 0.5), row(overlayfs, 9, 1, 1),
	})
	for _, want := range []string{
		"| loopback | scipy | ctrd-erofs | 2 | 4.00 (3.00-5.00) | 2.00 (2.00-2.00) | 1.00 (1.00-1.00) | 5.00 (4.00-6.00) | 2.0 | 3.0 | 4.0 | 0.0, 0.0 |\n",
		"| loopback | scipy | overlayfs | 1 | 9.00 | 1.00 | 1.00 | 10.00 | 2.0 | 3.0 | 4.0 | 0.0, 0.0 |\n",
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

// TestLinkLimit: over a slow link the least possible time is that of its bytes; 50 MB take 2 s at 200 Mbit/s.
func TestLinkLimit(t *testing.T) {
	var text strings.Builder
	writePulls(&text, []pullRow{{network: networks[1], image: "node", peer: eager, pull: 2 * time.Second, run: 800 * time.Millisecond, registry: 50e6}})
	if want := "\nratio eager/link-limit:node:slow 1.00\n"; !strings.Contains(text.String(), want) {
		t.Errorf("no %q in\n%s", want, &text)
	}
}

// TestStargz: over the link, lazy pulls are compared by their bytes, too.
func TestStargz(t *testing.T) {
	var text strings.Builder
	writePulls(&text, []pullRow{
		{network: networks[1], image: "node", peer: stargz, pull: time.Second, run: 3 * time.Second, linkPull: 1e6, link: 40e6},
		{network: networks[1], image: "node", peer: lazy, pull: time.Second, run: time.Second, linkPull: 2e6, link: 30e6},
	})
	for _, want := range []string{
		" 1.0, 40.0 |\n", "\nratio lazy/stargz:node:slow 0.50\n", "\nratio lazy/stargz-bytes:node:slow 0.75\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
	if strings.Contains(text.String(), "link-limit") {
		t.Errorf("the least time for a whole image is nothing for a lazy pull:\n%s", &text)
	}
}

// TestColumns: a table whose header and rows differ is not a table.
func TestColumns(t *testing.T) {
	var text strings.Builder
	writePulls(&text, []pullRow{{image: "i", peer: eager}})
	counts := map[int]bool{}
	for line := range strings.Lines(text.String()) {
		if strings.HasPrefix(line, "|") {
			counts[strings.Count(line, "|")] = true
		}
	}
	if len(counts) != 1 {
		t.Errorf("rows have different numbers of columns:\n%s", &text)
	}
	if got, want := len(pullRow{}.fields()), len(pullHeader); got != want {
		t.Errorf("the CSV has %d fields and %d names", got, want)
	}
}
