package remote

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/startup"
)

// maxLayers bounds the layers of an image. Overlayfs mounts at most 500.
const maxLayers = 1000

// image is what the manifest and the configuration of an image say, lowest layer first.
type image struct {
	layers  []ocispec.Descriptor
	diffIDs []digest.Digest
	chains  []digest.Digest // chain IDs (OCI image-spec, config.md)
	// reference is where the layers may be fetched from; empty if nowhere.
	reference string
	// program is what the image starts; nil if it does not say.
	program *startup.Program
}

// parseManifest reads a manifest, and returns with it the digest of the configuration.
func parseManifest(b []byte) (*image, digest.Digest, error) {
	var manifest ocispec.Manifest
	if err := json.Unmarshal(b, &manifest); err != nil {
		return nil, "", err
	}
	if n := len(manifest.Layers); n == 0 || n > maxLayers {
		return nil, "", fmt.Errorf("it has %d layers, want 1 to %d", n, maxLayers)
	}
	for _, l := range append(manifest.Layers, manifest.Config) {
		if err := l.Digest.Validate(); err != nil {
			return nil, "", fmt.Errorf("digest %q: %w", l.Digest, err)
		}
		if l.Size < 0 {
			return nil, "", fmt.Errorf("blob %s has the size %d", l.Digest, l.Size)
		}
	}
	return &image{layers: manifest.Layers}, manifest.Config.Digest, nil
}

// programOf is what a configuration starts. One that is not understood keeps no layer from being pulled: whoever runs the image has to.
func programOf(config json.RawMessage) *startup.Program {
	var c struct {
		Entrypoint, Cmd, Env []string
		WorkingDir           string
	}
	if len(config) == 0 || json.Unmarshal(config, &c) != nil {
		return nil
	}
	args := slices.Concat(c.Entrypoint, c.Cmd)
	if len(args) == 0 {
		return nil
	}
	return &startup.Program{Args: args, Env: c.Env, Dir: c.WorkingDir}
}

// addConfig reads the image's configuration.
func (img *image) addConfig(b []byte) error {
	var config struct {
		RootFS ocispec.RootFS  `json:"rootfs"`
		Config json.RawMessage `json:"config"`
	}
	if err := json.Unmarshal(b, &config); err != nil {
		return err
	}
	ids := config.RootFS.DiffIDs
	if len(ids) != len(img.layers) {
		return fmt.Errorf("it has %d diff_ids for %d layers", len(ids), len(img.layers))
	}
	for _, id := range ids {
		if err := id.Validate(); err != nil {
			return fmt.Errorf("diff_id %q: %w", id, err)
		}
	}
	img.diffIDs = ids
	img.program = programOf(config.Config)
	img.chains = identity.ChainIDs(append([]digest.Digest(nil), ids...)) // it works in place
	return nil
}

// place finds a layer that was announced. Only one place can have its chain ID.
func (img *image) place(a announcement, root bool) (int, error) {
	for i, chain := range img.chains {
		if chain != a.target {
			continue
		}
		if img.layers[i].Digest != a.layer {
			return i, reasonError{BadLabels, fmt.Errorf("layer %d of manifest %s is %s, announced was %s", i, a.manifest, img.layers[i].Digest, a.layer)}
		}
		if root != (i == 0) {
			return i, reasonError{BadLabels, errors.New("its parent is not the layer below it")}
		}
		return i, nil
	}
	return 0, reasonError{BadLabels, fmt.Errorf("no layers of manifest %s have the chain ID %s", a.manifest, a.target)}
}
