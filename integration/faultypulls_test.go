package integration

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/file"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/faultproxy"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/remote"
)

const (
	// faultyPulls and faultyPullsLong are how many pulls TestFaultyPulls makes.
	faultyPulls, faultyPullsLong = 25, 200
	// faultyPullTime is the deadline of one of them.
	faultyPullTime = 90 * time.Second
)

// TestFaultyPulls pulls one image again and again through a proxy that spoils every fourth request. Each pull gives the image's exact files, or
// an error that names host, blob and cause; and leaves no goroutine, open file, mount or temporary file.
//
// The snapshotter runs in this process, so that what it leaves can be seen, and stands alone: with a containerd around it every failure would
// be healed by a second download.
func TestFaultyPulls(t *testing.T) {
	s := newStory(t, 30*time.Minute, lab.Options{NoDaemon: true})
	layers := []layer{s.newLayer("large", 14<<20), s.newLayer("middle", 5<<20), s.newLayer("small", 100<<10)}
	ref := s.compose("faulty-v1", layers...)
	content := s.contentOf(ref)
	before := openThings(t)
	bad, err := faultproxy.New(s.RegistryURL(), faultproxy.Options{
		Seed: 4, Probability: 0.25, Stall: 2 * time.Second, RetryAfter: time.Second, SignedURLs: 2 * time.Second,
	})
	s.must(err)
	t.Cleanup(func() { _ = bad.Close() })
	pulls := faultyPulls
	if long() {
		pulls = faultyPullsLong
	}
	failed := map[remote.Reason]int{}
	for i := range pulls {
		f := faultyPull{story: s, content: content, image: s.RefAt(bad.Addr(), "faulty-v1"), layers: layers}
		if reason := f.run(i); reason != "" {
			failed[reason]++
		}
	}
	t.Logf("%d pulls, failed: %v; faults: %v", pulls, failed, bad.Counts())
	if n := failed[remote.Unavailable]; n > 0 {
		t.Errorf("%d pulls failed by what does not last, and should have been tried again", n)
	}
	if n := bad.LeakedAuthorization(); n > 0 {
		t.Errorf("%d requests brought credentials to where blobs are stored", n)
	}
	if len(bad.Counts()) < 16 {
		t.Errorf("only %d kinds of fault happened", len(bad.Counts()))
	}
	s.must(bad.Close()) // it runs in this process, too
	s.within(20*time.Second, "nothing is left open", func() error {
		if now := openThings(t); now.goroutines > before.goroutines || now.files > before.files {
			return fmt.Errorf("%+v before, %+v now", before, now)
		}
		return nil
	})
}

type things struct{ goroutines, files int }

func openThings(t *testing.T) things {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return things{runtime.NumGoroutine(), len(entries)}
}

// faultyPull is one pull into a snapshotter of its own.
type faultyPull struct {
	*story
	content documents
	image   string
	layers  []layer
}

// run returns why the pull failed, or "".
func (f faultyPull) run(i int) (failed remote.Reason) {
	f.t.Helper()
	root := filepath.Join(f.Dir, "tmp", fmt.Sprintf("faulty%d", i))
	client := registry.New(registry.Options{StallTimeout: time.Second, PlainHTTP: func(string) bool { return true }})
	sn, err := snapshotter.New(f.ctx, snapshotter.Options{Root: root, Backend: file.New(file.Options{}), Grace: -1, Content: f.content, Registry: client})
	f.must(err)
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(f.ctx, "default"), faultyPullTime)
	defer cancel()
	top, err := f.pulls(ctx, sn)
	if err == nil {
		err = f.compare(ctx, sn, top)
	}
	if err != nil {
		f.t.Errorf("pull %d: %v", i, err)
	}
	for reason, fallback := range sn.Remote().Fallbacks() {
		failed = reason
		if cause := fallback.Cause; !f.namesBlob(cause) || !strings.Contains(cause, "127.0.0.") {
			f.t.Errorf("pull %d: the error does not name host and blob: %s", i, cause)
		} else {
			f.t.Logf("pull %d: %s: %s", i, reason, cause)
		}
	}
	f.must(sn.Close())
	client.Close()
	left, err := filepath.Glob(filepath.Join(root, "layers", ".*"))
	f.must(err)
	if removing, _ := os.ReadDir(filepath.Join(root, "removing")); len(left) > 0 || len(removing) > 0 {
		f.t.Errorf("pull %d left %q and %v", i, left, removing)
	}
	f.must(errors.Join(f.UnmountAll(filepath.Join("tmp", filepath.Base(root))), os.RemoveAll(root)))
	return failed
}

func (f faultyPull) namesBlob(text string) bool {
	for _, l := range f.layers {
		if strings.Contains(text, l.Digest.String()) {
			return true
		}
	}
	return false
}

// pulls does what containerd does, and returns the top snapshot: none if containerd would have to fetch a layer.
func (f faultyPull) pulls(ctx context.Context, sn *snapshotter.Snapshotter) (top string, err error) {
	var ids []digest.Digest
	for _, l := range f.layers {
		ids = append(ids, l.diffID)
	}
	for i, chain := range identity.ChainIDs(ids) {
		key := "extract-" + chain.Encoded()
		_, err := sn.Prepare(ctx, key, top, snapshots.WithLabels(map[string]string{
			remote.TargetLabel:                     chain.String(),
			snapshotters.TargetRefLabel:            f.image,
			snapshotters.TargetManifestDigestLabel: f.content.manifest.String(),
			snapshotters.TargetLayerDigestLabel:    f.layers[i].Digest.String(),
		}))
		if err == nil {
			return "", sn.Remove(ctx, key)
		}
		if !errdefs.IsAlreadyExists(err) {
			return "", err
		}
		err = sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			if info.Kind == snapshots.KindCommitted && info.Labels[remote.TargetLabel] == chain.String() {
				top = info.Name
			}
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	return top, nil
}

// compare reads all files of a pulled image.
func (f faultyPull) compare(ctx context.Context, sn *snapshotter.Snapshotter, top string) error {
	if top == "" {
		return nil
	}
	mounts, err := sn.View(ctx, "view", top)
	if err != nil {
		return err
	}
	dir := f.t.TempDir()
	if err := mount.All(mounts, dir); err != nil {
		return err
	}
	var errs []error
	for _, l := range f.layers {
		b, err := os.ReadFile(filepath.Join(dir, l.name))
		if err == nil && sha256.Sum256(b) != l.content {
			err = fmt.Errorf("file %s has other bytes", l.name)
		}
		errs = append(errs, err)
	}
	entries, err := os.ReadDir(dir)
	if len(entries) != len(f.layers) {
		errs = append(errs, fmt.Errorf("the image has %d files, want %d", len(entries), len(f.layers)))
	}
	return errors.Join(append(errs, err, mount.UnmountAll(dir, 0))...)
}

// documents is a content store that has no layers.
type documents struct {
	manifest digest.Digest
	blobs    map[digest.Digest][]byte
}

// contentOf is what containerd has of an image when it asks for the first layer.
func (s *story) contentOf(ref string) documents {
	s.t.Helper()
	client := registry.New(registry.Options{})
	defer client.Close()
	desc, err := client.Resolve(s.ctx, ref)
	s.must(err)
	manifest, err := client.Document(s.ctx, ref, desc)
	s.must(err)
	var m ocispec.Manifest
	s.must(json.Unmarshal(manifest, &m))
	config, err := client.Document(s.ctx, ref, m.Config)
	s.must(err)
	return documents{desc.Digest, map[digest.Digest][]byte{desc.Digest: manifest, m.Config.Digest: config}}
}

func (d documents) Open(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
	return nil, errdefs.ErrNotFound
}

func (d documents) Document(_ context.Context, name digest.Digest) ([]byte, map[string]string, error) {
	b, ok := d.blobs[name]
	if !ok {
		return nil, nil, errdefs.ErrNotFound
	}
	return b, map[string]string{"containerd.io/distribution.source.127.0.0.1": "faulty"}, nil
}
