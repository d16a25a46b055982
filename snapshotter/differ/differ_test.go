package differ

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// snapshotTable is a Binder in memory: mounts whose source is a known snapshot's name are ours.
type snapshotTable struct {
	mu    sync.Mutex
	bound map[string]layerstore.ID // "" = active and not bound
}

func (s *snapshotTable) ActiveSnapshot(_ context.Context, mounts []mount.Mount) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(mounts) != 1 {
		return "", false
	}
	_, ok := s.bound[mounts[0].Source]
	return mounts[0].Source, ok
}

func (s *snapshotTable) Bind(_ context.Context, id string, instance layerstore.ID, _ ocispec.Descriptor) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bound[id] != "" && s.bound[id] != instance {
		return errors.Join(errors.New("has a layer already"), errdefs.ErrFailedPrecondition)
	}
	s.bound[id] = instance
	return nil
}

// blobs is a Source over containerd's local content store. It counts, and remembers the namespace it was asked in.
type blobs struct {
	content.Store
	mu         sync.Mutex
	opened     int
	namespaces []string
}

func (b *blobs) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	namespace, _ := namespaces.Namespace(ctx)
	b.mu.Lock()
	b.opened++
	b.namespaces = append(b.namespaces, namespace)
	b.mu.Unlock()
	ra, err := b.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{content.NewReader(ra), ra}, nil
}

// fixture is a differ behind a real gRPC connection.
type fixture struct {
	snapshots *snapshotTable
	source    *blobs
	layers    *layerstore.Store
	differ    *Differ
	remote    interface {
		diff.Applier
		diff.Comparer
	}
}

func newFixture(t *testing.T, snapshots ...string) *fixture {
	t.Helper()
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{snapshots: &snapshotTable{bound: map[string]layerstore.ID{}}, source: &blobs{Store: store}}
	for _, id := range snapshots {
		f.snapshots.bound[id] = ""
	}
	if f.layers, err = layerstore.Open(t.TempDir(), layerstore.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.layers.Close() })
	f.differ = New(f.snapshots, f.layers, f.source)

	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	diffapi.RegisterDiffServer(server, diffservice.FromApplierAndComparer(f.differ, f.differ))
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); <-done })
	conn, err := grpc.NewClient("unix://"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	f.remote = proxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(interface {
		diff.Applier
		diff.Comparer
	})
	return f
}

func (f *fixture) put(t *testing.T, mediaType string, blob []byte) ocispec.Descriptor {
	t.Helper()
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	if err := content.WriteBlob(t.Context(), f.source, desc.Digest.String(), bytes.NewReader(blob), desc); err != nil {
		t.Fatal(err)
	}
	return desc
}

func inNamespace(t *testing.T) context.Context {
	return namespaces.WithNamespace(t.Context(), "default")
}

func on(snapshot string) []mount.Mount { return []mount.Mount{{Type: "bind", Source: snapshot}} }

// layerTar is a small layer with padding after its end, which counts for the diffID.
func layerTar(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	text := strings.Repeat("hello from a layer\n", 1000)
	for _, h := range []*tar.Header{
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "etc/greeting", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, text); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b.Write(make([]byte, 3*512))
	return b.Bytes()
}

func compress(t *testing.T, newWriter func(io.Writer) io.WriteCloser, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := newWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }

func zstandard(w io.Writer) io.WriteCloser {
	e, err := zstd.NewWriter(w)
	if err != nil {
		panic(err)
	}
	return e
}

func TestApplyConvertsAndBinds(t *testing.T) {
	plain := layerTar(t)
	for _, test := range []struct {
		mediaType string
		blob      []byte
	}{
		{ocispec.MediaTypeImageLayer, plain},
		{ocispec.MediaTypeImageLayerGzip, compress(t, gzipped, plain)},
		{ocispec.MediaTypeImageLayerZstd, compress(t, zstandard, plain)},
		{images.MediaTypeDockerSchema2Layer, compress(t, gzipped, plain)}, // Docker's plain type is compressed at times
		{images.MediaTypeDockerSchema2LayerGzip, compress(t, gzipped, plain)},
		{images.MediaTypeDockerSchema2LayerForeign, plain},
		{images.MediaTypeDockerSchema2LayerForeignGzip, compress(t, gzipped, plain)},
	} {
		t.Run(test.mediaType, func(t *testing.T) {
			f := newFixture(t, "1")
			layer := f.put(t, test.mediaType, test.blob)
			got, err := f.remote.Apply(inNamespace(t), layer, on("1"))
			if err != nil {
				t.Fatal(err)
			}
			if got.MediaType != ocispec.MediaTypeImageLayer || got.Digest != digest.FromBytes(plain) || got.Size != int64(len(plain)) {
				t.Errorf("got %+v, want the descriptor of the uncompressed tar", got)
			}
			instance, err := f.layers.Get(f.snapshots.bound["1"])
			if err != nil {
				t.Fatal(err)
			}
			if instance.Layer != layer.Digest || instance.DiffID != got.Digest {
				t.Errorf("snapshot is bound to %+v", instance)
			}
			if f.layers.Pinned(instance.ID) {
				t.Error("the instance is still pinned")
			}
		})
	}
}

func TestLayerThatIsThereIsNotReadAgain(t *testing.T) {
	f := newFixture(t, "1", "2")
	layer := f.put(t, ocispec.MediaTypeImageLayer, layerTar(t))
	for _, snapshot := range []string{"1", "2"} {
		if _, err := f.remote.Apply(inNamespace(t), layer, on(snapshot)); err != nil {
			t.Fatal(err)
		}
	}
	if f.snapshots.bound["1"] != f.snapshots.bound["2"] {
		t.Errorf("two instances of one layer: %v", f.snapshots.bound)
	}
	if f.source.opened != 1 || f.source.namespaces[0] != "default" {
		t.Errorf("opened %d times in namespaces %q, want once in default", f.source.opened, f.source.namespaces)
	}
}

func TestNotOursIsNotImplemented(t *testing.T) {
	f := newFixture(t, "1")
	tarLayer := f.put(t, ocispec.MediaTypeImageLayer, layerTar(t))
	if _, err := f.remote.Apply(inNamespace(t), tarLayer, on("overlayfs")); !errdefs.IsNotImplemented(err) {
		t.Errorf("foreign mounts: %v", err)
	}
	for _, mediaType := range []string{
		"", ocispec.MediaTypeImageManifest, images.MediaTypeImageLayerEncrypted, images.MediaTypeImageLayerGzipEncrypted,
		images.MediaTypeErofsLayer, images.MediaTypeErofsLayer + "+zstd", ocispec.MediaTypeImageLayer + "+br",
	} {
		layer := tarLayer
		layer.MediaType = mediaType
		if _, err := f.remote.Apply(inNamespace(t), layer, on("1")); !errdefs.IsNotImplemented(err) {
			t.Errorf("media type %q: %v", mediaType, err)
		}
	}
	// containerd's walking differ checks such digests, we do not.
	sha512 := tarLayer
	sha512.Digest = digest.SHA512.FromBytes(layerTar(t))
	if _, err := f.remote.Apply(inNamespace(t), sha512, on("1")); !errdefs.IsNotImplemented(err) {
		t.Errorf("another hash: %v", err)
	}
	if _, err := f.remote.Compare(inNamespace(t), on("1"), on("1")); !errdefs.IsNotImplemented(err) {
		t.Errorf("compare: %v", err)
	}
	if f.source.opened != 0 || f.snapshots.bound["1"] != "" {
		t.Errorf("opened %d layers, bound %v", f.source.opened, f.snapshots.bound)
	}
}

func TestSecondLayerIsRefused(t *testing.T) {
	f := newFixture(t, "1")
	first := f.put(t, ocispec.MediaTypeImageLayer, layerTar(t))
	second := f.put(t, ocispec.MediaTypeImageLayerGzip, compress(t, gzipped, layerTar(t)))
	for range 2 { // a repeated request is none that changes anything
		if _, err := f.remote.Apply(inNamespace(t), first, on("1")); err != nil {
			t.Fatal(err)
		}
	}
	bound := f.snapshots.bound["1"]
	_, err := f.remote.Apply(inNamespace(t), second, on("1"))
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "bind to snapshot 1") {
		t.Errorf("got %v, want the refusal of Bind", err)
	}
	if f.snapshots.bound["1"] != bound {
		t.Error("the snapshot lost its first layer")
	}
	for _, instance := range f.layers.List() {
		if f.layers.Pinned(instance.ID) {
			t.Errorf("instance %s is still pinned", instance.ID)
		}
	}
}

func TestApplyErrors(t *testing.T) {
	plain := layerTar(t)
	f := newFixture(t, "1")
	good := f.put(t, ocispec.MediaTypeImageLayer, plain)
	for _, test := range []struct {
		name  string
		ctx   context.Context
		layer ocispec.Descriptor
		is    func(error) bool
	}{
		{"absent", inNamespace(t), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString("absent")}, errdefs.IsNotFound},
		{"no namespace", t.Context(), good, errdefs.IsFailedPrecondition},
		{"bad digest", inNamespace(t), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: "sha256:1"}, errdefs.IsInvalidArgument},
		{"truncated", inNamespace(t), f.put(t, ocispec.MediaTypeImageLayer, plain[:2000]), errdefs.IsInvalidArgument},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := f.remote.Apply(test.ctx, test.layer, on("1"))
			if !test.is(err) {
				t.Errorf("unexpected class of %v", err)
			}
			if err != nil && !strings.Contains(err.Error(), test.layer.Digest.String()) {
				t.Errorf("%v does not name the layer", err)
			}
		})
	}
	if n := len(f.layers.List()); n != 0 || f.snapshots.bound["1"] != "" {
		t.Errorf("%d instances are left, bound %v", n, f.snapshots.bound)
	}
}

func TestProgressBeginsAtZeroAndEndsAtTheSize(t *testing.T) {
	f := newFixture(t, "1")
	layer := f.put(t, ocispec.MediaTypeImageLayer, layerTar(t))
	var seen []int64
	progress := diff.WithProgress(func(_ ocispec.Descriptor, n int64) { seen = append(seen, n) })
	if _, err := f.differ.Apply(inNamespace(t), layer, on("1"), progress); err != nil {
		t.Fatal(err)
	}
	if len(seen) < 2 || seen[0] != 0 || seen[len(seen)-1] != layer.Size {
		t.Errorf("got %v, want 0 … %d", seen, layer.Size)
	}
}
