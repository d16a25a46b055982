package snapshotter

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
)

// unreliableRegistry has layers, and cannot be reached each tenth time.
type unreliableRegistry map[digest.Digest][]byte

func (u unreliableRegistry) Open(_ context.Context, _ string, layer ocispec.Descriptor) (io.ReadCloser, error) {
	if rand.IntN(10) == 0 {
		return nil, errdefs.ErrUnavailable
	}
	time.Sleep(rand.N(3 * time.Millisecond))
	return io.NopCloser(bytes.NewReader(u[layer.Digest])), nil
}

// TestUnderContainerdsMetadata: with containerd's own metadata store above, clients of two namespaces pull images that share layers and run
// containers, give up at random, and garbage is collected on both sides meanwhile. Nobody gets another error than that he gave up, and in
// the end nothing is left.
func TestUnderContainerdsMetadata(t *testing.T) {
	opts := immediate(newRoot(t))
	content, registry := memoryContent{}, &memoryRegistry{blobs: map[digest.Digest][]byte{}}
	var images []remoteImage
	for i := range 4 {
		images = append(images, addImage(t, content, registry, "base", fmt.Sprint("shared ", i%2), fmt.Sprint("own ", i), fmt.Sprint("own ", i), "top"))
	}
	opts.Content, opts.Registry = content, unreliableRegistry(registry.blobs)
	opts.Keep = 100 << 10
	opts.Layers.Parallel, opts.Layers.SyncAfter = 3, true
	s := start(t, opts)
	stop := run(t, s)
	db := openContainerdsMetadata(t, s)

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var busy sync.WaitGroup
	for client := range 6 {
		busy.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				inNamespace := namespaces.WithNamespace(ctx, fmt.Sprint("ns", client%2))
				pullAndRun(t, inNamespace, db, images[rand.IntN(len(images))], fmt.Sprintf("%d-%d", client, n))
			}
		})
	}
	busy.Go(func() {
		for ctx.Err() == nil {
			if _, err := db.GarbageCollect(context.WithoutCancel(ctx)); err != nil {
				t.Errorf("containerd's garbage collection: %v", err)
			}
			time.Sleep(rand.N(100 * time.Millisecond))
		}
	})
	busy.Wait()
	stop()

	// A crash of containerd between our commit and its own leaves a snapshot that it has not heard of.
	if _, err := s.Prepare(inNamespace(t, "ns0"), "orphan", "", images[0].labels(0)); err != nil && !errdefs.IsAlreadyExists(err) {
		t.Error(err)
	}
	// containerd looks for such snapshots when it has removed another.
	for _, namespace := range []string{"ns0", "ns1"} {
		_, err := db.Snapshotter("erofs").Prepare(inNamespace(t, namespace), "garbage", "")
		must(t, err)
	}
	_, err := db.GarbageCollect(t.Context())
	must(t, err)
	must(t, s.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		t.Errorf("snapshot %s is left", info.Name)
		return nil
	}))
	s.remote.Close() // ends pulls that wait for their next layer
	s.keep = 0
	must(t, s.Cleanup(t.Context()))
	must(t, checkConsistent(t.Context(), s))
	if left := s.layers.List(); len(left) > 0 {
		t.Errorf("layers are left: %v", left)
	}
}

// openContainerdsMetadata opens an empty metadata store of containerd, in which s is called "erofs".
func openContainerdsMetadata(t *testing.T, s *Snapshotter) *metadata.DB {
	dir := t.TempDir()
	file, err := bbolt.Open(filepath.Join(dir, "meta.db"), 0o600, nil)
	must(t, err)
	t.Cleanup(func() { must(t, file.Close()) })
	blobs, err := local.NewStore(filepath.Join(dir, "content"))
	must(t, err)
	db := metadata.NewDB(file, blobs, map[string]snapshots.Snapshotter{"erofs": s})
	must(t, db.Init(t.Context()))
	return db
}

// pullAndRun does what containerd's unpacker does with an image, and starts and removes a container, under a lease. After a random time it
// gives up.
func pullAndRun(t *testing.T, ctx context.Context, db *metadata.DB, img remoteImage, name string) {
	manager := metadata.NewLeaseManager(db)
	lease, err := manager.Create(context.WithoutCancel(ctx), leases.WithRandomID())
	if err != nil {
		t.Error(err)
		return
	}
	defer func() {
		if err := manager.Delete(context.WithoutCancel(ctx), lease); err != nil {
			t.Error(err)
		}
	}()
	limited, cancel := context.WithTimeout(leases.WithLease(ctx, lease.ID), rand.N(400*time.Millisecond))
	defer cancel()
	sn := db.Snapshotter("erofs")
	parent := ""
	for i, chain := range img.chains {
		_, err := sn.Prepare(limited, fmt.Sprintf("extract-%s-%d", name, i), parent, img.labels(i))
		if err == nil {
			return // it fell back: containerd would fetch the layer
		}
		if !errdefs.IsAlreadyExists(err) {
			if limited.Err() == nil {
				t.Errorf("layer %d: %v", i, err)
			}
			return
		}
		parent = chain.String()
	}
	container := "container-" + name
	if _, err := sn.Prepare(limited, container, parent); err != nil {
		if limited.Err() == nil {
			t.Errorf("container: %v", err)
		}
		return
	}
	if err := sn.Remove(context.WithoutCancel(ctx), container); err != nil {
		t.Errorf("remove a container: %v", err)
	}
}
