package render

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
)

// lines is the view for files and pipes: one line for each thing that has changed, with the daemon's time.
type lines struct {
	out io.Writer
	// shown is the line of each alarm, pull, layer of a pull, work, and lazy layer that was written last, without its time.
	shown map[string]string
	// cause of the interruption that was written last.
	cause string
}

func (v *lines) show(s admin.Status, before *admin.Status) error {
	p := page{w: v.out}
	now := s.Time.UTC().Format(time.RFC3339)
	if before == nil {
		p.line("%s erofs-snapshotter %s, running for %s, %s", now, orNone(s.Version), span(s.Time.Sub(s.Started)), totals(s))
		v.cause = ""
	}
	fresh := map[string]string{}
	say := func(key, line string) {
		for fresh[key] != "" { // removed and pulled again: the same name twice
			key += "'"
		}
		fresh[key] = line
		if v.shown[key] != line {
			p.line("%s %s", now, line)
		}
	}
	for _, a := range alarms(s, steps) {
		say(a.key, a.line())
	}
	r := ratesOf(s, before)
	for _, pull := range s.Pulls {
		key := strings.Join([]string{pull.Namespace, pull.Image, pull.Manifest, pull.Started.String()}, " ")
		for _, l := range pull.Layers {
			say(key+" "+l.Digest, orNone(pull.Image)+" "+layerLine(l, r))
		}
		if !pull.Ended.IsZero() {
			say(key, summary(pull, r, s.Time))
		}
	}
	for _, l := range otherWork(s) {
		say(l.Digest, layerLine(l, r))
	}
	g := growthOf(s, before)
	for _, l := range s.Layers {
		if line := lazyLine(l, g); line != "" {
			say("lazy "+l.Instance, line)
		}
	}
	v.shown = fresh
	return p.err
}

func (v *lines) lost(cause error) error {
	if v.cause == cause.Error() {
		return nil
	}
	v.cause = cause.Error()
	p := page{w: v.out}
	p.line("%s no answer: %s", time.Now().UTC().Format(time.RFC3339), firstLine(v.cause))
	return p.err
}

// layerLine says how far a layer is.
func layerLine(l admin.PullLayer, r rates) string {
	text := short(l.Digest) + " " + orNone(l.State)
	p := progressOfLayer(l, r)
	switch l.State {
	case admin.Fetching:
		text += ", " + p.amount()
		if p.rate > 0 {
			text += ", " + p.speed() + ", " + p.left() + " left"
		}
	default:
		text += ", " + size(l.BlobBytes)
	}
	if l.Source != "" {
		text += ", from " + clean(l.Source)
	}
	return text
}

// lazyLine says how far a layer is that is filled now, or that it is complete when it was not before. Nothing is said of one that stands still.
func lazyLine(l admin.Layer, g growth) string {
	_, wasPartial := g.bytes[identity(l)]
	switch {
	case l.Lazy == nil:
	case l.State == admin.Partial && g.active(l):
		return short(name(l)) + " " + orNone(stateOf(l)) + ", " + fillLine(l, g)
	case l.State != admin.Partial && wasPartial:
		return fmt.Sprintf("%s %s, %s", short(name(l)), orNone(l.State), size(l.Lazy.Bytes))
	}
	return ""
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return clean(line)
}
