package registry

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The places of objects in the path of a registry's API.
const (
	blobs     = "blobs"
	manifests = "manifests"
)

// object is something in a repository, and the hosts that may be asked for it.
type object struct {
	repository *repository
	endpoints  []*endpoint
	place      string // blobs or manifests
	reference  string // its digest or tag
	size       int64  // or -1
	accept     string // media types
	name       string // in errors: "blob sha256:…"
	// refusals are the failures that hosts would repeat for each range, so that only one asks them: of *endpoint to *failure.
	refusals sync.Map
	// strange counts the answers of hosts that break the protocol: of *endpoint to *atomic.Int32.
	strange sync.Map
}

// forgiven is how many strange answers of a host are not taken for its last word: of the machines behind one name one may be broken, or a
// proxy on the way may be.
const forgiven = 3

// forgives counts a strange answer, and says whether the host is asked again.
func (o *object) forgives(e *endpoint) bool {
	n, _ := o.strange.LoadOrStore(e, new(atomic.Int32))
	return n.(*atomic.Int32).Add(1) <= forgiven
}

// object returns what a descriptor names, and a context with what a token for it must allow.
func (c *Client) object(ctx context.Context, image string, desc ocispec.Descriptor, place string) (context.Context, *object, error) {
	o := &object{place: place, reference: desc.Digest.String(), size: desc.Size, name: strings.TrimSuffix(place, "s") + " " + desc.Digest.String()}
	if err := desc.Digest.Validate(); err != nil || desc.Size < 0 {
		return nil, nil, &Error{Object: o.name, Err: fmt.Errorf("%w: descriptor with a bad digest or size %d", errdefs.ErrInvalidArgument, desc.Size)}
	}
	ctx, err := c.locate(ctx, image, o, docker.HostCapabilityPull)
	return ctx, o, err
}

// locate finds the hosts of an object.
func (c *Client) locate(ctx context.Context, image string, o *object, caps docker.HostCapabilities) (context.Context, error) {
	r, err := c.directory.repository(image)
	if err != nil {
		return nil, &Error{Object: o.name, Err: err}
	}
	o.repository, o.endpoints = r, r.serving(caps)
	ctx, err = docker.ContextWithRepositoryScope(ctx, r.spec, false)
	if err != nil {
		return nil, &Error{Object: o.name, Err: err}
	}
	return ctx, nil
}

// hosts returns the names of the hosts in their order.
func (o *object) hosts() string {
	all := make([]string, len(o.endpoints))
	for i, e := range o.endpoints {
		all[i] = e.host.name
	}
	return strings.Join(all, ", ")
}
