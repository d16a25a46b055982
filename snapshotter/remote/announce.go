package remote

import (
	"net/url"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/opencontainers/go-digest"
)

// TargetLabel holds the chain ID of the snapshot that a Prepare is to become, and of one that was prepared so.
const TargetLabel = "containerd.io/snapshot.ref"

// announcement is what the labels of a Prepare say about the layer that belongs into the snapshot.
type announcement struct {
	image                   string // a reference, in the normal form that containerd writes
	manifest, layer, target digest.Digest
}

// announced reads the labels. ok is false unless all are there and in their form: containerd does not always send them.
func announced(l map[string]string) (a announcement, ok bool) {
	a = announcement{
		image:    l[snapshotters.TargetRefLabel],
		manifest: digest.Digest(l[snapshotters.TargetManifestDigestLabel]),
		layer:    digest.Digest(l[snapshotters.TargetLayerDigestLabel]),
		target:   digest.Digest(l[TargetLabel]),
	}
	for _, d := range []digest.Digest{a.manifest, a.layer, a.target} {
		if d.Validate() != nil {
			return announcement{}, false
		}
	}
	return a, a.image != ""
}

// fetchedFrom says whether containerd fetched the blob with these labels from the repository that a reference names. containerd leaves
// the port out of the label.
func fetchedFrom(l map[string]string, image string) bool {
	spec, err := reference.Parse(image)
	if err != nil {
		return false
	}
	u, err := url.Parse("any://" + spec.Locator)
	if err != nil {
		return false
	}
	repository := strings.TrimPrefix(u.Path, "/")
	return repository != "" && slices.Contains(strings.Split(l[labels.LabelDistributionSource+"."+u.Hostname()], ","), repository)
}
