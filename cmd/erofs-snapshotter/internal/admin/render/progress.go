package render

import (
	"cmp"
	"fmt"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

// rates are the bytes per second of the layers that are made, by name. A layer that waits for its turn has none.
type rates map[string]float64

// name is what people know a layer by: its digest if it has one.
func name(l admin.Layer) string { return cmp.Or(l.Digest, l.Instance) }

// ratesOf compares s with the status before it, if there was one. Without it, and for work that began in between, a rate is the average
// since the work began.
func ratesOf(s admin.Status, before *admin.Status) rates {
	r := rates{}
	for _, l := range s.Layers {
		if l.Work == nil || l.Work.Started.IsZero() {
			continue
		}
		since, bytes := l.Work.Started, l.Work.DoneBytes
		if old := workBefore(before, l); old != nil {
			since, bytes = before.Time, l.Work.DoneBytes-old.DoneBytes
		}
		if took := s.Time.Sub(since).Seconds(); took > 0 {
			r[name(l)] = max(float64(bytes)/took, 0)
		}
	}
	return r
}

// workBefore finds the same work in the status before. Another start is another attempt.
func workBefore(before *admin.Status, l admin.Layer) *admin.Work {
	if before == nil {
		return nil
	}
	for _, old := range before.Layers {
		if old.Instance == l.Instance && old.Work != nil && old.Work.Started.Equal(l.Work.Started) {
			return old.Work
		}
	}
	return nil
}

// progress is how far something of a known or unknown length is.
type progress struct {
	done, total int64   // total 0: not known
	rate        float64 // bytes per second; 0: not known, or it stands still
}

// part is between 0 and 1.
func (p progress) part() float64 {
	if p.total <= 0 {
		return 0
	}
	return min(max(float64(p.done)/float64(p.total), 0), 1)
}

// amount is the text of how much is done.
func (p progress) amount() string {
	if p.total <= 0 {
		return size(p.done)
	}
	return fmt.Sprintf("%s of %s, %.0f%%", size(p.done), size(p.total), 100*p.part())
}

func (p progress) speed() string {
	if p.rate <= 0 {
		return "-"
	}
	return size(int64(p.rate)) + "/s"
}

// left is how long the rest takes at this rate.
func (p progress) left() string {
	if p.rate <= 0 || p.total <= 0 {
		return "-"
	}
	// A rest of many years would overflow a Duration.
	const longest = 100 * 365 * 24 * time.Hour
	seconds := max(float64(p.total-p.done), 0) / p.rate
	if seconds >= longest.Seconds() {
		return "-"
	}
	return span(time.Duration(seconds * float64(time.Second)))
}

func progressOfLayer(l admin.PullLayer, r rates) progress {
	p := progress{done: l.DoneBytes, total: l.BlobBytes}
	if l.State == admin.Fetching {
		p.rate = r[l.Digest]
	}
	return p
}

// progressOf adds up the layers of a pull that are not left to containerd.
func progressOf(pull admin.Pull, r rates) progress {
	var sum progress
	for _, l := range pull.Layers {
		if l.State == admin.Local {
			continue
		}
		p := progressOfLayer(l, r)
		sum.done, sum.total, sum.rate = sum.done+p.done, sum.total+p.total, sum.rate+p.rate
	}
	return sum
}

// otherWork are the layers that are made, but for no pull that goes on: such as those that containerd has fetched. They are described as
// those of a pull are.
func otherWork(s admin.Status) []admin.PullLayer {
	pulled := map[string]bool{}
	for _, pull := range s.Pulls {
		for _, l := range pull.Layers {
			if pull.Ended.IsZero() && l.State != admin.Local {
				pulled[l.Digest] = true
			}
		}
	}
	var others []admin.PullLayer
	for _, l := range s.Layers {
		if l.Work == nil || pulled[l.Digest] {
			continue
		}
		state := admin.Fetching
		if l.Work.Started.IsZero() {
			state = admin.Waiting
		}
		others = append(others, admin.PullLayer{
			Digest: name(l), BlobBytes: l.Work.BlobBytes, DoneBytes: l.Work.DoneBytes, State: state, Source: l.Source,
		})
	}
	return others
}

// summary says what a pull is and how far.
func summary(pull admin.Pull, r rates, now time.Time) string {
	states := map[string]int{}
	for _, l := range pull.Layers {
		states[l.State]++
	}
	finished := states[admin.Done] + states[admin.Ready]
	text := fmt.Sprintf("%s (%s), %d of %s", orNone(pull.Image), orNone(pull.Namespace), finished, count(len(pull.Layers), "layer", "layers"))
	if n := states[admin.Local]; n > 0 {
		text += fmt.Sprintf(", %d left to containerd", n)
	}
	if n := states[admin.Failed]; n > 0 {
		text += fmt.Sprintf(", %d failed", n)
	}
	p := progressOf(pull, r)
	if !pull.Ended.IsZero() {
		return fmt.Sprintf("%s, %s, ended after %s", text, p.amount(), span(pull.Ended.Sub(pull.Started)))
	}
	text += fmt.Sprintf(", %s, since %s", p.amount(), span(now.Sub(pull.Started)))
	if p.rate > 0 {
		text += fmt.Sprintf(", %s, %s left", p.speed(), p.left())
	}
	return text
}
