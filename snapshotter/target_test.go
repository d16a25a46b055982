package snapshotter

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/remote"
)

// memoryRegistry has layers, and counts how often one was fetched.
type memoryRegistry struct {
	blobs   map[digest.Digest][]byte
	fetched int
}

func (m *memoryRegistry) Open(_ context.Context, _ string, layer ocispec.Descriptor) (io.ReadCloser, error) {
	b, ok := m.blobs[layer.Digest]
	if !ok {
		return nil, errdefs.ErrNotFound
	}
	m.fetched++
	return io.NopCloser(bytes.NewReader(b)), nil
}

// remoteImage is an image whose manifest containerd has, and whose layers a registry has.
type remoteImage struct {
	manifest digest.Digest
	layers   []ocispec.Descriptor
	chains   []digest.Digest
}

// addImage makes an image with a layer of one file for each name; its content is the name.
func addImage(t *testing.T, content memoryContent, registry *memoryRegistry, names ...string) remoteImage {
	t.Helper()
	var img remoteImage
	var ids []digest.Digest
	for _, name := range names {
		b := tarOf(t, name, name)
		l := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(b), Size: int64(len(b))}
		registry.blobs[l.Digest] = b
		img.layers, ids = append(img.layers, l), append(ids, l.Digest)
	}
	put := func(v any) ocispec.Descriptor {
		b, err := json.Marshal(v)
		must(t, err)
		content[digest.FromBytes(b)] = b
		return ocispec.Descriptor{Digest: digest.FromBytes(b), Size: int64(len(b))}
	}
	img.chains = identity.ChainIDs(append([]digest.Digest(nil), ids...))
	config := put(ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: ids}})
	img.manifest = put(ocispec.Manifest{Config: config, Layers: img.layers}).Digest
	return img
}

// labels are those of containerd's Prepare for layer i.
func (img remoteImage) labels(i int) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{
		remote.TargetLabel:                     img.chains[i].String(),
		snapshotters.TargetRefLabel:            "registry.example/app:1",
		snapshotters.TargetManifestDigestLabel: img.manifest.String(),
		snapshotters.TargetLayerDigestLabel:    img.layers[i].Digest.String(),
	})
}

// pullRemote does what containerd does with an image: for each layer Prepare, which must say that the snapshot exists, and the search for it
// that containerd's metadata store makes. It returns the name of the top snapshot.
func pullRemote(t *testing.T, s *Snapshotter, ctx context.Context, img remoteImage) string {
	t.Helper()
	parent := ""
	for i := range img.layers {
		key := "extract-" + t.Name() + img.chains[i].Encoded() + parent
		if _, err := s.Prepare(ctx, key, parent, img.labels(i)); !errdefs.IsAlreadyExists(err) {
			t.Fatalf("layer %d: got %v, want ErrAlreadyExists", i, err)
		}
		if _, err := s.Stat(ctx, key); !errdefs.IsNotFound(err) {
			t.Errorf("layer %d: the active snapshot is still there (%v)", i, err)
		}
		found := targets(t, s, img.chains[i], parent)
		if len(found) != 1 {
			t.Fatalf("layer %d: snapshots with the target and the parent %q: %q, want one", i, parent, found)
		}
		parent = found[0]
	}
	return parent
}

func targets(t *testing.T, s *Snapshotter, target digest.Digest, parent string) (names []string) {
	t.Helper()
	must(t, s.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted && info.Parent == parent && info.Labels[remote.TargetLabel] == target.String() {
			names = append(names, info.Name)
		}
		return nil
	}))
	return names
}

func inNamespace(t *testing.T, name string) context.Context {
	return namespaces.WithNamespace(t.Context(), name)
}

// startRemote opens a snapshotter with an empty content store and registry.
func startRemote(t *testing.T) (*Snapshotter, memoryContent, *memoryRegistry) {
	t.Helper()
	opts := immediate(newRoot(t))
	content, registry := memoryContent{}, &memoryRegistry{blobs: map[digest.Digest][]byte{}}
	opts.Content, opts.Registry = content, registry
	return start(t, opts), content, registry
}

// TestRemotePull: an image is pulled without containerd fetching a layer, in two namespaces, and runs.
func TestRemotePull(t *testing.T) {
	s, content, registry := startRemote(t)
	img := addImage(t, content, registry, "one", "two", "three")
	top := pullRemote(t, s, inNamespace(t, "default"), img)
	if again := pullRemote(t, s, inNamespace(t, "k8s.io"), img); again != top || registry.fetched != 3 {
		t.Errorf("the second namespace got %q, the first %q; %d fetches", again, top, registry.fetched)
	}
	mounts, err := s.Prepare(t.Context(), "container", top)
	dir := mounted(t, mounts, err)
	for _, name := range []string{"one", "two", "three"} {
		wantContent(t, dir+"/"+name, name)
	}
	usage, err := s.Usage(t.Context(), top)
	if err != nil || usage.Size == 0 {
		t.Errorf("usage %+v, error %v", usage, err)
	}
}

// TestTargetWithOtherParents: a namespace that has unpacked the lowest layer itself has another parent for the ones above.
func TestTargetWithOtherParents(t *testing.T) {
	s, content, registry := startRemote(t)
	img := addImage(t, content, registry, "one", "two")
	pullRemote(t, s, inNamespace(t, "default"), img)
	pull(t, s, "k8s.io/1/own", "", "one", "one")
	ctx := inNamespace(t, "k8s.io")
	if _, err := s.Prepare(ctx, "extract", "k8s.io/1/own", img.labels(1)); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("got %v, want ErrAlreadyExists", err)
	}
	if found := targets(t, s, img.chains[1], "k8s.io/1/own"); len(found) != 1 {
		t.Errorf("snapshots on the other parent: %q, want one", found)
	}
}

// TestTargetOfActiveSnapshot: an unpack that goes on elsewhere has the same label and does not stand in the way.
func TestTargetOfActiveSnapshot(t *testing.T) {
	s, content, registry := startRemote(t)
	img := addImage(t, content, registry, "one")
	_, err := s.Prepare(t.Context(), "extract-elsewhere", "", snapshots.WithLabels(map[string]string{remote.TargetLabel: img.chains[0].String()}))
	must(t, err)
	pullRemote(t, s, inNamespace(t, "default"), img)
}

// TestTargetKeyInUse: an error about the key must not look as if the target existed.
func TestTargetKeyInUse(t *testing.T) {
	s, content, registry := startRemote(t)
	img := addImage(t, content, registry, "one")
	_, err := s.Prepare(t.Context(), "key", "")
	must(t, err)
	if _, err := s.Prepare(inNamespace(t, "default"), "key", "", img.labels(0)); !errdefs.IsFailedPrecondition(err) || errdefs.IsAlreadyExists(err) {
		t.Errorf("got %v, want ErrFailedPrecondition", err)
	}
}

// TestFallbackPrepares: a layer that cannot be had gives mounts, so that containerd unpacks it.
func TestFallbackPrepares(t *testing.T) {
	s, content, registry := startRemote(t)
	img := addImage(t, content, registry, "one")
	clear(registry.blobs)
	mounts, err := s.Prepare(inNamespace(t, "default"), "extract", "", img.labels(0))
	if err != nil || len(mounts) != 1 {
		t.Fatalf("mounts %v, error %v", mounts, err)
	}
	if n := s.Remote().Fallbacks()[remote.NotFound].Count; n != 1 {
		t.Errorf("%d fallbacks, want one", n)
	}
	must(t, s.Commit(t.Context(), "local", "extract", img.labels(0)))
}

// TestRestoreFromRegistry: a layer that came from a registry is made from there again.
func TestRestoreFromRegistry(t *testing.T) {
	opts := immediate(newRoot(t))
	content, registry := memoryContent{}, &memoryRegistry{blobs: map[digest.Digest][]byte{}}
	opts.Content, opts.Registry = content, registry
	s := start(t, opts)
	img := addImage(t, content, registry, "one")
	top := pullRemote(t, s, inNamespace(t, "default"), img)
	inst := s.Layers().List()[0]
	must(t, s.Close())
	powerCut(t, s, inst)

	s = start(t, opts)
	mounts, err := s.Prepare(inNamespace(t, "k8s.io"), "container", top)
	wantContent(t, mounted(t, mounts, err)+"/one", "one")
	if registry.fetched != 2 {
		t.Errorf("%d fetches, want 2", registry.fetched)
	}
}

// TestRestoreRemembersTheRegistry: it is not forgotten when another namespace gets the same layer without one, and then loses it.
func TestRestoreRemembersTheRegistry(t *testing.T) {
	opts := immediate(newRoot(t))
	content, registry := memoryContent{}, &memoryRegistry{blobs: map[digest.Digest][]byte{}}
	opts.Content, opts.Registry = content, registry
	s := start(t, opts)
	img := addImage(t, content, registry, "one")
	top := pullRemote(t, s, inNamespace(t, "default"), img)
	inst := s.Layers().List()[0]
	other := inNamespace(t, "other")
	mounts, err := s.Prepare(other, "extract", "")
	must(t, err)
	active, _ := s.ActiveSnapshot(other, mounts)
	must(t, s.Bind(other, active, inst.ID, img.layers[0]))
	must(t, s.Close())
	powerCut(t, s, inst)

	s = start(t, opts)
	mounts, err = s.Prepare(other, "container", top)
	wantContent(t, mounted(t, mounts, err)+"/one", "one")
}

// TestLayerUses: a layer of two images has both as references; it is mounted once something runs on it.
func TestLayerUses(t *testing.T) {
	s, content, registry := startRemote(t)
	top := pullRemote(t, s, inNamespace(t, "default"), addImage(t, content, registry, "shared", "one"))
	pullRemote(t, s, inNamespace(t, "default"), addImage(t, content, registry, "shared", "two"))
	mounts, err := s.Prepare(t.Context(), "container", top)
	mounted(t, mounts, err)
	uses, err := s.LayerUses(t.Context())
	must(t, err)
	references, mountedLayers := 0, 0
	for _, u := range uses {
		references += u.References
		if u.Mounted {
			mountedLayers++
		}
	}
	// Three layers, each of a committed snapshot; two of them lowers of the container.
	if len(uses) != 3 || references != 5 || mountedLayers != 2 {
		t.Errorf("%d layers, %d references, %d mounted: %+v", len(uses), references, mountedLayers, uses)
	}
}
