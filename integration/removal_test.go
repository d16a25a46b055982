package integration

import (
	"fmt"
	"maps"
	"path/filepath"
	"testing"

	"github.com/opencontainers/image-spec/identity"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// TestRemovalUnderContainer takes everything away from a running container that containerd lets one take away: its image, its
// snapshot, those of the image. It goes on reading right bytes, also while the image is pulled again, and what it used is released
// when it ends.
func TestRemovalUnderContainer(t *testing.T) {
	t.Run("erofs", func(t *testing.T) {
		s := newStory(t, storyTime, lab.Options{Images: []string{"nginx-gzip"}})
		s.removalUnderContainer(s.pull("nginx-gzip"))
	})
	t.Run("directories", func(t *testing.T) {
		s := newStory(t, storyTime, lab.Options{Differ: "walking", Images: []string{"nginx-gzip"}})
		s.removalUnderContainer(s.pull("nginx-gzip"))
	})
}

func (s *story) removalUnderContainer(ref string) {
	s.t.Helper()
	chain := s.topChain(ref)
	s.startReader(ref, "first")
	s.readsOn("first")
	superblocks := maps.Clone(s.superblocks)
	s.t.Logf("%d layers are mounted, %d of them as EROFS", len(s.layerMounts()), len(superblocks))

	s.ctr("snapshots", "--snapshotter", lab.Snapshotter, "rm", "first")
	s.removeImages(ref)
	if _, err := s.Client().SnapshotService(lab.Snapshotter).Stat(s.ctx, chain); err == nil {
		s.t.Error("the image's snapshots are still there")
	}
	s.within(releaseTime, "images of layers deleted under the container", s.imagesLeft)
	s.readsOn("first")
	if alive := living(superblocks); len(alive) == 0 && len(superblocks) > 0 {
		s.t.Error("no superblock is left, so the container cannot be reading")
	}

	s.must(s.tryPull(ref))
	s.startReader(ref, "second")
	s.readsOn("second")
	s.readsOn("first")
	s.ctr("task", "rm", "--force", "first")
	s.ctr("container", "rm", "first")
	s.within(releaseTime, "superblocks of the first container released", func() error {
		if alive := living(superblocks); len(alive) > 0 {
			return fmt.Errorf("superblocks %q live", alive)
		}
		return nil
	})
	s.readsOn("second")
	s.end("second")
	s.removeImages(ref)
	s.released()
}

// topChain is the name of the snapshot that containers of an image are made on.
func (s *story) topChain(ref string) string {
	s.t.Helper()
	img, err := s.Client().GetImage(s.ctx, ref)
	s.must(err)
	diffIDs, err := img.RootFS(s.ctx)
	s.must(err)
	return identity.ChainID(diffIDs).String()
}

// imagesLeft is an error while there is a layer as EROFS, as files or as a mount. Directories that a container uses may stay: unlike
// the files of a mounted image, they are not kept by the kernel.
func (s *story) imagesLeft() error {
	files, err := filepath.Glob(filepath.Join(s.SnapshotterRoot(), "layers/*/meta.erofs"))
	if err != nil || len(files) > 0 {
		return fmt.Errorf("files %q (%v)", files, err)
	}
	for _, point := range s.layerMounts() {
		if name, ok := superblock(point); ok {
			return fmt.Errorf("superblock %s is mounted on %s", name, point)
		}
	}
	return nil
}
