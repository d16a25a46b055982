package progress

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// play has two layers fetched, of which one is done, on a clock of its own.
func play(p *Printer) {
	clock := time.Unix(0, 0)
	p.now = func() time.Time { clock = clock.Add(time.Second); return clock }
	a, b := digest.FromString("a"), digest.FromString("b")
	p.Begin([]ocispec.Descriptor{{Digest: a, Size: 4000}, {Digest: b, Size: 8_000_000}}, 5)
	p.Read(a, 1000)
	p.Read(b, 2_000_000)
	p.Read(a, 3000)
	p.Read(digest.FromString("unknown"), 1)
	p.Done(a)
	p.Done(a)
	p.End()
}

func TestPlain(t *testing.T) {
	var out bytes.Buffer
	play(New(&out))
	want := "fetching 2 of 5 layers, 8.004MB\nlayer 1/2  ca978112ca1b  4kB  1.333kB/s  done\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", &out, want)
	}
}

// screen is what is left of what was written, on a terminal that knows the two sequences.
func screen(t *testing.T, written string) (lines []string) {
	t.Helper()
	for _, line := range strings.SplitAfter(written, "\n") {
		for strings.HasPrefix(line, "\x1b[") {
			up := int(line[2] - '0')
			rest, ok := strings.CutPrefix(line[3:], "A\x1b[J")
			if !ok || up > len(lines) {
				t.Fatalf("unexpected sequence in %q with %d lines above", line, len(lines))
			}
			lines, line = lines[:len(lines)-up], rest
		}
		if line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestTerminal(t *testing.T) {
	var out bytes.Buffer
	p := New(&out)
	p.terminal, p.columns, p.rows = true, 40, 5
	play(p)
	if !strings.Contains(out.String(), "layer 2/2  3e23e8160039  2MB of 8MB") {
		t.Errorf("no line of the layer in work: %q", &out)
	}
	for _, line := range screen(t, out.String()) {
		if len(line) > 41 {
			t.Errorf("line %q would wrap", line)
		}
	}
	if got := screen(t, out.String()); len(got) != 2 || !strings.HasPrefix(got[1], "layer 1/2") {
		t.Errorf("left on the screen: %q", got)
	}
}
