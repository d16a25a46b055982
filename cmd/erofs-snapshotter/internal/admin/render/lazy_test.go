package render

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

func TestLazyLines(t *testing.T) {
	var b strings.Builder
	v := lines{out: &b}
	before, s := demanding(), relieved()
	same := demanding() // half a second later the oldest request is no twice as old
	same.Time = noon.Add(500 * time.Millisecond)
	for _, err := range []error{v.show(before, nil), v.show(same, &before), v.show(s, &same)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "lazylines.txt", b.String())
}

// TestLazyTableWidth: the numbers of lazy layers fit 100 columns, whatever they are.
func TestLazyTableWidth(t *testing.T) {
	s := demanding()
	z := s.Layers[1].Lazy
	z.Bytes, z.PresentBytes, z.DemandedBytes, z.FetchedBytes.Fault = 1023<<30, 1022<<30, 1023<<20, 1023<<20
	z.Faults, z.Hits, z.Failed, z.Latency = 9_999_999, 9_999_998, 9_999, admin.Latency{P50: 0.000999, P99: 0.999}
	var b strings.Builder
	p := page{w: &b}
	if p.lazies(s); p.err != nil {
		t.Fatal(p.err)
	}
	for line := range strings.Lines(b.String()) {
		if n := utf8.RuneCountInString(line); n > 101 {
			t.Errorf("%d columns: %s", n-1, line)
		}
	}
}

// TestManyPartialLayers: those that somebody waits for are seen, the others are counted.
func TestManyPartialLayers(t *testing.T) {
	s := admin.Status{Time: noon}
	for i := range 30 {
		s.Layers = append(s.Layers, admin.Layer{Instance: string(rune('a' + i)), State: admin.Partial, Lazy: &admin.Lazy{Extents: 1}})
	}
	s.Layers[29].Lazy.InFlight = []admin.Request{{Since: noon}}
	before := admin.Status{Layers: []admin.Layer{{Instance: "c", State: admin.Partial, Lazy: &admin.Lazy{PresentBytes: -1}}}}
	rows := fillRows(s, &before)
	if len(rows) != mostFilling+1 || !strings.Contains(rows[0], "1 read waits") || !strings.HasPrefix(rows[1], "  c ") ||
		rows[mostFilling] != "  … and 20 more partial layers" {
		t.Errorf("got %d rows: %q", len(rows), rows)
	}
}

// TestPulledAgain: a removed layer and the one that took its name are not taken for each other.
func TestPulledAgain(t *testing.T) {
	gone, again := lazyLayers()[2], lazyLayers()[2]
	again.Created, again.Lazy.Orphan, again.Lazy.PresentBytes = noon, false, 5<<20
	s := admin.Status{Time: noon, Layers: []admin.Layer{gone, again}}
	later := admin.Status{Time: noon.Add(time.Second), Layers: []admin.Layer{again, gone}}
	if g := growthOf(later, &s); g.active(gone) || g.active(again) {
		t.Errorf("got %+v", g)
	}
	var b strings.Builder
	v := lines{out: &b}
	for _, err := range []error{v.show(s, nil), v.show(s, &s)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(b.String(), "WRONG"); n != 2 {
		t.Errorf("said %d times:\n%s", n, b.String())
	}
}

func TestPercent(t *testing.T) {
	for _, test := range []struct {
		z    admin.Lazy
		want int
	}{
		{admin.Lazy{}, 100}, // nothing to fill
		{admin.Lazy{Bytes: 100, Extents: 2}, 0},
		{admin.Lazy{Bytes: 1000, PresentBytes: 999, Extents: 2, PresentExtents: 1}, 99},
		{admin.Lazy{Bytes: 0, Extents: 2, PresentExtents: 1}, 0},
		{admin.Lazy{Bytes: 1000, PresentBytes: 1000, Extents: 2, PresentExtents: 2}, 100},
	} {
		if got := percent(&test.z); got != test.want {
			t.Errorf("%+v: %d, want %d", test.z, got, test.want)
		}
	}
}

func TestHitRatio(t *testing.T) {
	for want, z := range map[string]admin.Lazy{
		"-": {}, "0%": {Faults: 1000, Hits: 9}, "99%": {Faults: 1000, Hits: 999}, "100%": {Faults: 7, Hits: 7},
	} {
		if got := hitRatio(&z); got != want {
			t.Errorf("%+v: %s, want %s", z, got, want)
		}
	}
}

func TestLatency(t *testing.T) {
	for seconds, want := range map[float64]string{
		-1: "-", 0: "-", 1e-9: "1µs", 85e-6: "85µs", 0.00099995: "1.0ms", 0.00123: "1.2ms", 0.00996: "10ms", 0.34: "340ms", 0.9996: "1.0s", 2.54: "2.5s",
		9.96: "10s", 72: "1m12s", 1e300: "-",
	} {
		if got := latency(seconds); got != want {
			t.Errorf("%v: %s, want %s", seconds, got, want)
		}
	}
}

func TestSteps(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "less than 1s", 999 * time.Millisecond: "less than 1s", time.Second: "more than 1s", 3 * time.Second: "more than 2s",
		35 * time.Second: "more than 32s", 1<<63 - 1: "more than 99420d12h",
	} {
		if got := steps(d); got != want {
			t.Errorf("%s: %s, want %s", d, got, want)
		}
	}
}

func TestPoisonedWithoutUsers(t *testing.T) {
	l := lazyLayers()[3]
	l.Lazy.Users = nil
	if rows := poisonRows(l); len(rows) != 1 || rows[0] != "POISONED 77cc00000000: restart the containers that run from registry.example/db" {
		t.Errorf("got %q", rows)
	}
}
