package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxDocument bounds manifests, indexes and configs. Registries take manifests up to 4 MiB; configs of images with a long history are
// somewhat larger.
const maxDocument = 16 << 20

// manifestTypes is what we say to understand when only a tag is known.
var manifestTypes = strings.Join([]string{
	ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest,
	images.MediaTypeDockerSchema2ManifestList, images.MediaTypeDockerSchema2Manifest, "*/*",
}, ", ")

// Resolve returns the descriptor of the manifest or index that the image's tag or digest names. For a tag, only hosts that hosts.toml
// trusts to resolve are asked.
func (c *Client) Resolve(ctx context.Context, image string) (ocispec.Descriptor, error) {
	o := &object{place: manifests, size: unknownLength, accept: manifestTypes, name: "manifest"}
	ctx, err := c.locate(ctx, image, o, docker.HostCapabilityPull)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	spec := o.repository.spec
	want := spec.Digest()
	switch {
	case want != "":
		o.reference = want.String()
		err = want.Validate()
	case spec.Object != "":
		o.reference = spec.Object
		o.endpoints = o.repository.serving(docker.HostCapabilityPull | docker.HostCapabilityResolve)
	default:
		err = errors.New("neither a tag nor a digest")
	}
	if err != nil {
		return ocispec.Descriptor{}, &Error{Object: o.name, Err: fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)}
	}
	return ask(ctx, c, o, func(ctx context.Context, ep *endpoint) (ocispec.Descriptor, *failure) {
		return c.describe(ctx, ep, o, want)
	})
}

// Document returns a manifest, index or config, whose digest and size were compared.
func (c *Client) Document(ctx context.Context, image string, desc ocispec.Descriptor) ([]byte, error) {
	place := blobs
	if images.IsManifestType(desc.MediaType) || images.IsIndexType(desc.MediaType) {
		place = manifests
	}
	ctx, o, err := c.object(ctx, image, desc, place)
	if err != nil {
		return nil, err
	}
	if desc.Size > maxDocument {
		return nil, &Error{Object: o.name, Err: fmt.Errorf("%w: %d bytes are more than a document may have (%d)",
			errdefs.ErrFailedPrecondition, desc.Size, maxDocument)}
	}
	o.accept = "*/*"
	if desc.MediaType != "" {
		o.accept = desc.MediaType + ", */*"
	}
	return ask(ctx, c, o, func(ctx context.Context, ep *endpoint) ([]byte, *failure) {
		content, _, f := c.fetch(ctx, ep, o)
		if f == nil && desc.Digest.Algorithm().FromBytes(content) != desc.Digest {
			f = otherDigest(desc.Digest.Algorithm().FromBytes(content))
		}
		return content, f
	})
}

// ask does one thing at one host after the other, until it works.
func ask[T any](ctx context.Context, c *Client, o *object, at func(context.Context, *endpoint) (T, *failure)) (T, error) {
	attempts := c.attempts(ctx, o)
	for {
		ep, err := attempts.next(ctx)
		if err != nil {
			var none T
			return none, err
		}
		answer, f := at(ctx, ep)
		if f == nil {
			ep.host.breaker.worked()
			return answer, nil
		}
		attempts.note(ctx, ep, f)
	}
}

// describe asks one host what an image is. Registries count HEAD requests less, but not all answer them fully.
func (c *Client) describe(ctx context.Context, ep *endpoint, o *object, want digest.Digest) (ocispec.Descriptor, *failure) {
	desc, f := c.head(ctx, ep, o)
	if f == nil && desc.Digest == "" {
		var content []byte
		if content, desc.MediaType, f = c.fetch(ctx, ep, o); f == nil {
			algorithm := digest.Canonical
			if want != "" {
				algorithm = want.Algorithm()
			}
			desc.Digest, desc.Size = algorithm.FromBytes(content), int64(len(content))
		}
	}
	switch {
	case f != nil:
	case want != "" && desc.Digest != want:
		f = otherDigest(desc.Digest)
	case desc.Size > maxDocument:
		f = lasting(kindLength, errdefs.ErrFailedPrecondition, "a manifest of %d bytes", desc.Size)
	}
	return desc, f
}

func otherDigest(got digest.Digest) *failure {
	return lasting(kindContent, errdefs.ErrDataLoss, "it has digest %s there", got)
}

// head returns what the headers of a manifest say. A descriptor without a digest says that they do not say enough.
func (c *Client) head(ctx context.Context, ep *endpoint, o *object) (ocispec.Descriptor, *failure) {
	a := c.attempt(ctx, ep, o, http.MethodHead, "")
	defer a.stall.end()
	resp, f := a.exchange()
	if f != nil {
		return ocispec.Descriptor{}, f
	}
	resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusBadRequest, http.StatusForbidden, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return ocispec.Descriptor{}, nil // what GET answers counts, and says why
	default:
		return ocispec.Descriptor{}, statusFailure(resp)
	}
	dgst := digest.Digest(resp.Header.Get("Docker-Content-Digest"))
	if dgst.Validate() != nil || resp.ContentLength <= 0 {
		return ocispec.Descriptor{}, nil
	}
	return ocispec.Descriptor{MediaType: mediaType(resp), Digest: dgst, Size: resp.ContentLength}, nil
}

// fetch reads the object as one, of the size that it must have if that is known.
func (c *Client) fetch(ctx context.Context, ep *endpoint, o *object) (content []byte, media string, f *failure) {
	a := c.attempt(ctx, ep, o, http.MethodGet, "")
	defer a.stall.end()
	resp, f := a.exchange()
	if f != nil {
		return nil, "", f
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		f = statusFailure(resp)
	} else if f = checkEncoding(resp); f == nil && o.size != unknownLength && resp.ContentLength >= 0 && resp.ContentLength != o.size {
		f = lasting(kindLength, errdefs.ErrFailedPrecondition, "%w: %d bytes instead of %d", errLength, resp.ContentLength, o.size)
	}
	if f != nil {
		return nil, "", f
	}
	b := &body{ReadCloser: resp.Body, stall: a.stall, left: o.size, host: ep.host, release: func() {}}
	content, err := io.ReadAll(io.LimitReader(b, maxDocument+1))
	if err != nil {
		return nil, "", bodyFailure(err)
	}
	if len(content) > maxDocument {
		return nil, "", lasting(kindLength, errdefs.ErrFailedPrecondition, "more than %d bytes", maxDocument)
	}
	return content, mediaType(resp), nil
}

// mediaType is the Content-Type without parameters.
func mediaType(resp *http.Response) string {
	t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}
