package render

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

// Table writes all of a status. Sections of which there is nothing to say are left out.
func Table(w io.Writer, s admin.Status) error {
	p := page{w: w}
	p.line("erofs-snapshotter %s, running for %s, root %s", orNone(s.Version), span(s.Time.Sub(s.Started)), orNone(s.Root))
	for _, a := range alarms(s, span) {
		p.line("%s", strings.Join(a.rows(), "\n"))
	}
	r := ratesOf(s, nil)
	p.layers(s)
	p.lazies(s)
	p.keeper(s)
	p.fscache(s)
	p.work(s, r)
	p.pulls(s, r)
	p.fallbacks("LEFT TO CONTAINERD", "PULLS", s.Fallbacks, s.Time)
	p.fallbacks("NOT LAZY", "LAYERS", s.LazyFallbacks, s.Time)
	p.hosts(s)
	return p.err
}

// layers lists what is made first, then the latest layers first.
func (p *page) layers(s admin.Status) {
	p.line("")
	rows := [][]string{{"LAYER", "INSTANCE", "KIND", "STATE", "SIZE", "USED BY", "MOUNTED", "AGE", "SOURCE"}}
	layers := slices.SortedFunc(slices.Values(s.Layers), func(a, b admin.Layer) int {
		if a.Created.IsZero() != b.Created.IsZero() {
			if a.Created.IsZero() {
				return -1
			}
			return 1
		}
		return cmp.Or(b.Created.Compare(a.Created), strings.Compare(a.Instance, b.Instance))
	})
	for _, l := range layers {
		age, mounted := "-", "no"
		if !l.Created.IsZero() {
			age = span(s.Time.Sub(l.Created))
		}
		if l.Mounted {
			mounted = "yes"
		}
		rows = append(rows, []string{short(l.Digest), short(l.Instance), orNone(l.Kind), orNone(stateOf(l)), size(l.DiskBytes),
			fmt.Sprint(l.References), mounted, age, orNone(l.Source)})
	}
	if len(layers) > 0 {
		p.table(rows)
	}
	p.line("%s", totals(s))
}

// totals is one line about all layers.
func totals(s admin.Status) string {
	states := map[string]int{}
	for _, l := range s.Layers {
		states[stateOf(l)]++
	}
	parts := []string{count(len(s.Layers), "layer", "layers")}
	for _, state := range slices.Sorted(maps.Keys(states)) {
		if state != admin.Complete {
			parts = append(parts, fmt.Sprintf("%d %s", states[state], orNone(state)))
		}
	}
	parts = append(parts, size(s.Cache.DiskBytes)+" on disk")
	if s.Cache.KeptBytes > 0 || s.Cache.KeepLimitBytes > 0 {
		parts = append(parts, fmt.Sprintf("%s of it kept for the next pull (at most %s)", size(s.Cache.KeptBytes), size(s.Cache.KeepLimitBytes)))
	}
	return strings.Join(parts, ", ")
}

// work lists the layers that are made now.
func (p *page) work(s admin.Status, r rates) {
	rows := [][]string{{"WORK", "DONE", "RATE", "LEFT", "AWAITED BY", "SOURCE"}}
	for _, l := range s.Layers {
		if l.Work == nil {
			continue
		}
		now := progress{done: l.Work.DoneBytes, total: l.Work.BlobBytes, rate: r[name(l)]}
		amount := now.amount()
		if l.Work.Started.IsZero() {
			amount = "waits for its turn"
		}
		rows = append(rows, []string{short(name(l)), amount, now.speed(), now.left(), fmt.Sprint(l.Work.Waiters), orNone(l.Source)})
	}
	if len(rows) > 1 {
		p.line("")
		p.table(rows)
	}
}

func (p *page) pulls(s admin.Status, r rates) {
	if len(s.Pulls) > 0 {
		p.line("")
		p.line("PULLS")
	}
	for _, pull := range s.Pulls {
		p.line("%s", summary(pull, r, s.Time))
	}
}

// fallbacks lists reasons under a heading, with how many there were of what.
func (p *page) fallbacks(heading, what string, reasons map[string]admin.Fallback, now time.Time) {
	rows := [][]string{{heading, what, "LAST", "IMAGE", "CAUSE"}}
	for _, reason := range slices.Sorted(maps.Keys(reasons)) {
		f := reasons[reason]
		rows = append(rows, []string{orNone(reason), fmt.Sprint(f.Count), span(now.Sub(f.Time)) + " ago", orNone(f.Image), orNone(f.Cause)})
	}
	if len(rows) > 1 {
		p.line("")
		p.table(rows)
	}
}

func (p *page) hosts(s admin.Status) {
	rows := [][]string{{"REGISTRY", "REQUESTS", "RETRIES", "FAILURES", "FETCHED", "BREAKER"}}
	for _, name := range slices.Sorted(maps.Keys(s.Registry)) {
		h := s.Registry[name]
		rows = append(rows, []string{orNone(name), fmt.Sprint(h.Requests), fmt.Sprint(h.Retries), fmt.Sprint(h.Failures), size(h.FetchedBytes), orNone(h.Breaker)})
	}
	if len(rows) > 1 {
		p.line("")
		p.table(rows)
	}
}
