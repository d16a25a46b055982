package remote

import (
	"cmp"
	"errors"
	"maps"
	"time"

	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// Reason is why containerd had to fetch layers itself.
type Reason string

// Reasons. They are names of metrics, too: do not change them.
const (
	NoManifest   Reason = "no-manifest"  // the manifest or configuration cannot be had from containerd's content store
	BadImage     Reason = "bad-image"    // manifest and configuration do not fit
	BadLabels    Reason = "bad-labels"   // the labels do not fit the image
	MediaType    Reason = "media-type"   // the layer is not a tar stream that we know
	NoSource     Reason = "no-source"    // containerd has neither the layer, nor fetched the manifest from where the labels say
	Unauthorized Reason = "unauthorized" // the registry does not accept our credentials
	NotFound     Reason = "not-found"    // the registry does not have the layer
	Unavailable  Reason = "unavailable"  // the registry cannot be reached, or fails
	BadAnswer    Reason = "bad-answer"   // the registry answers what it should not, such as other bytes than were asked for
	Digest       Reason = "digest"       // the blob or its tar has another digest
	Failed       Reason = "failed"       // anything else, such as a tar stream that cannot be converted
)

// Reasons are all of them.
func Reasons() []Reason {
	return []Reason{NoManifest, BadImage, BadLabels, MediaType, NoSource, Unauthorized, NotFound, Unavailable, BadAnswer, Digest, Failed}
}

// Fallback counts the pulls that fell back for one reason, and describes the last one.
type Fallback struct {
	Count int64
	Time  time.Time
	Image string
	Cause string
}

// Fallbacks returns what fell back since the start.
func (p *Puller) Fallbacks() map[Reason]Fallback {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.fallbacks)
}

// reasonError is an error that knows its reason.
type reasonError struct {
	reason Reason
	error
}

func (e reasonError) Unwrap() error { return e.error }

func reasonOf(err error) Reason {
	var known reasonError
	switch {
	case errors.As(err, &known):
		return known.reason
	case errors.Is(err, layerstore.ErrDigest):
		return Digest
	case errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
		return Unauthorized
	case errdefs.IsNotFound(err):
		return NotFound
	case errdefs.IsUnavailable(err), errdefs.IsDeadlineExceeded(err):
		return Unavailable
	case errdefs.IsFailedPrecondition(err), errdefs.IsDataLoss(err), errdefs.IsOutOfRange(err):
		return BadAnswer
	}
	return Failed
}

// fallBack leaves layer i, and those above it, to containerd. pl is nil when the request did not get as far as joining its pull. Labels that do
// not fit may be forged, so they decide nothing for the pull whose key they have.
func (p *Puller) fallBack(key pullKey, pl *pull, i int, a announcement, cause error) {
	reason := reasonOf(cause)
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.pulls[key]
	if pl == nil && reason != BadLabels && (now == nil || now.image == nil) {
		pl = cmp.Or(now, &pull{key: key}) // its image cannot be read
	}
	if pl != nil {
		if pl.fellBack && pl.from <= i {
			return // another request of the same pull was first
		}
		p.end(pl)
		pl.fellBack, pl.from = true, i
		if !p.closed && (now == nil || now == pl || now.fellBack) { // otherwise it was begun anew meanwhile
			p.remember(pl)
		}
	}
	count := p.fallbacks[reason].Count + 1
	p.fallbacks[reason] = Fallback{Count: count, Time: time.Now(), Image: a.image, Cause: cause.Error()}
	p.log.Warn("containerd fetches this layer of the image and those above it", "image", a.image, "namespace", key.namespace, "layer", a.layer,
		"reason", reason, "cause", cause)
}

// remember keeps a pull that has fallen back until its next one will have begun. It is called with mu held.
func (p *Puller) remember(pl *pull) {
	keep := fallbackTime
	if pl.image == nil {
		keep = unreadableTime
	}
	p.pulls[pl.key] = pl
	time.AfterFunc(keep, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.pulls[pl.key] == pl {
			delete(p.pulls, pl.key)
		}
	})
}
