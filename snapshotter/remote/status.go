package remote

import (
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// Pull describes a pull that goes on or has ended not long ago.
type Pull struct {
	Image, Namespace string
	Manifest         digest.Digest
	Started          time.Time
	Ended            time.Time // zero while it goes on
	Layers           []PullLayer
}

// PullLayer describes a layer of a pull.
type PullLayer struct {
	Digest digest.Digest
	Size   int64 // of the blob, in bytes
	State  State
}

// Pulls returns the pulls that go on and the last that have ended, ordered by their start.
func (p *Puller) Pulls() []Pull {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := slices.Clone(p.recent)
	for _, pl := range p.pulls {
		if pl.image != nil && pl.ended.IsZero() {
			all = append(all, pl)
		}
	}
	slices.SortFunc(all, func(a, b *pull) int { return a.started.Compare(b.started) })
	pulls := make([]Pull, 0, len(all))
	for _, pl := range all {
		pulls = append(pulls, pl.describe())
	}
	return pulls
}

// describe is called with mu held.
func (pl *pull) describe() Pull {
	d := Pull{Image: pl.key.image, Namespace: pl.key.namespace, Manifest: pl.key.manifest, Started: pl.started, Ended: pl.ended}
	for i, l := range pl.image.layers {
		state := pl.states[i]
		if pl.fellBack && i >= pl.from && state != Done {
			state = Local
		}
		d.Layers = append(d.Layers, PullLayer{Digest: l.Digest, Size: l.Size, State: state})
	}
	return d
}

// Stats counts what was made ready since the start.
type Stats struct {
	Layers int64
	Pulls  int64 // to their last layer
}

// Stats returns the counts so far.
func (p *Puller) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}
