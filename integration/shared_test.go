package integration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/image-spec/identity"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// removeFrom removes an image from the namespace of a context, and lets containerd collect what only it needed.
func (s *story) removeFrom(ctx context.Context, ref string) {
	s.t.Helper()
	s.must(s.Client().ImageService().Delete(ctx, ref, images.SynchronousDelete()))
}

// TestSharedLayersAtOnce: ten images that share layers are pulled by ten clients in two namespaces at the same time. Each layer is fetched and
// stored once, and when the images are removed nothing is left.
func TestSharedLayersAtOnce(t *testing.T) {
	s := newStory(t, storyTime, remoteOptions(lab.Options{Images: []string{"nginx-gzip"}}))
	base := s.cachedLayers("nginx-gzip")
	middle := []layer{s.newLayer("middle0", 6<<20), s.newLayer("middle1", 9<<20)}
	wanted := map[string]layer{}
	var refs []string
	for i := range 10 {
		layers := []layer{base[0], middle[i%2], middle[(i+1)%2], s.newLayer(fmt.Sprintf("top%d", i), 1<<20)}
		if i%3 == 0 {
			layers = append(layers, base[1])
		}
		for _, l := range layers {
			wanted[l.Digest.String()] = l
		}
		refs = append(refs, s.compose(fmt.Sprintf("shared%d-v1", i), layers...))
	}
	var pulling sync.WaitGroup
	failures := make([]error, len(refs))
	for i, ref := range refs {
		pulling.Go(func() { failures[i] = s.transfer(s.namespace(i%2), ref) })
	}
	pulling.Wait()
	for i, err := range failures {
		if err != nil {
			t.Errorf("pull of %s: %v", refs[i], err)
		}
	}
	s.noteSuperblocks()
	sent := map[string]int64{}
	for _, r := range s.RegistryRequests() {
		if _, blob, ok := strings.Cut(r.Path, "/blobs/"); ok && r.Method == http.MethodGet && r.Status < 300 {
			sent[blob] += r.Bytes
		}
	}
	for blob, l := range wanted {
		if sent[blob] != l.Size {
			t.Errorf("of layer %s with %d bytes the registry sent %d", blob, l.Size, sent[blob])
		}
	}
	if n := len(s.instances()); n != len(wanted) {
		t.Errorf("%d layers on disk, want %d", n, len(wanted))
	}
	s.usageIsThatOfDu(s.namespace(0), s.namespace(1))
	s.neverFellBack()
	for i, ref := range refs {
		s.removeFrom(s.namespace(i%2), ref)
	}
	s.released()
}

// usageIsThatOfDu expects that the snapshots of all images, which share layers, are charged together what the layers take on disk, within
// 2 %. containerd shows one snapshot of ours in each namespace that uses it.
func (s *story) usageIsThatOfDu(namespaces ...context.Context) {
	s.t.Helper()
	sn := s.Client().SnapshotService(s.Plugin())
	charged := map[string]int64{}
	for _, ctx := range namespaces {
		s.must(sn.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
			u, err := sn.Usage(ctx, info.Name)
			charged[info.Name] = u.Size
			return err
		}))
	}
	out, err := exec.Command("du", "-s", "--block-size=1", filepath.Join(s.SnapshotterRoot(), "layers")).Output()
	s.must(err)
	var sum, disk int64
	for _, size := range charged {
		sum += size
	}
	_, err = fmt.Sscan(string(out), &disk)
	s.must(err)
	s.t.Logf("usage %d, du %d", sum, disk)
	if diff := max(sum-disk, disk-sum); diff > disk/50 {
		s.t.Errorf("the snapshots are charged %d bytes, the layers take %d", sum, disk)
	}
}

// TestLyingImage: an image that claims the contents of another. Whichever is pulled first, the honest one shows its own files, and the
// other one's pull fails.
func TestLyingImage(t *testing.T) {
	for _, order := range []string{"liar honest", "honest liar"} {
		t.Run(order, func(t *testing.T) {
			s := newStory(t, storyTime, remoteOptions(lab.Options{}))
			honest, other := s.newLayer("honest", 1<<20), s.newLayer("lie", 1<<20)
			lie := other
			lie.diffID = honest.diffID
			refs := map[string]string{"honest": s.compose("honest-v1", honest), "liar": s.compose("liar-v1", lie)}
			for i, name := range strings.Fields(order) {
				// Two namespaces: in one containerd itself takes a chain ID that it has for the whole truth, and asks nobody.
				err := s.transfer(s.namespace(i), refs[name])
				switch {
				case name == "honest":
					s.must(err)
					s.shows(s.namespace(i), refs[name], "honest", "lie")
				case err == nil:
					t.Error("the liar's pull succeeded")
				default:
					t.Logf("the liar's pull: %v", err)
				}
			}
			if n := len(s.instances()); n > 2 {
				t.Errorf("%d layers on disk", n)
			}
		})
	}
}

// shows expects that an image in the namespace of a context has one file in its root and has not another.
func (s *story) shows(ctx context.Context, ref, has, not string) {
	s.t.Helper()
	img, err := s.Client().GetImage(ctx, ref)
	s.must(err)
	ids, err := img.RootFS(ctx)
	s.must(err)
	sn := s.Client().SnapshotService(s.Plugin())
	// containerd would collect a snapshot that nothing refers to.
	root := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": ""})
	mounts, err := sn.View(ctx, "shows", identity.ChainID(ids).String(), root)
	s.must(err)
	target := s.t.TempDir()
	s.must(mount.All(mounts, target))
	entries, err := os.ReadDir(target)
	s.must(errors.Join(err, mount.UnmountAll(target, 0), sn.Remove(ctx, "shows")))
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if !slices.Contains(names, has) || slices.Contains(names, not) {
		s.t.Errorf("%s shows %q, want %q", ref, names, has)
	}
}
