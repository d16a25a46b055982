package integration

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// TestRemovalUnderContainer takes everything away from a running container that containerd lets one take away: its image, its
// snapshot, those of the image. It goes on reading right bytes, also while the image is pulled again, and what it used is released
// when it ends.
func TestRemovalUnderContainer(t *testing.T) {
	for _, differ := range []string{lab.Differ, "walking"} {
		t.Run(differ, func(t *testing.T) {
			s := newStory(t, storyTime, lab.Options{Differ: differ, Images: []string{"nginx-gzip"}})
			ref := s.pull("nginx-gzip")
			s.startReader(ref, "first")
			s.removalUnderContainer(ref)
		})
	}
	// The kernel keeps deleted files of an image. A directory must not be deleted while a container uses it.
	t.Run("directory", func(t *testing.T) {
		s := newStory(t, storyTime, lab.Options{Images: []string{"nginx-gzip"}})
		ref := s.pull("nginx-gzip")
		s.startReaderOnDirectory(ref, "first")
		s.removalUnderContainer(ref, "directory")
	})
}

// removalUnderContainer does it to the container "first" of an image, and to more committed snapshots.
func (s *story) removalUnderContainer(ref string, snapshots ...string) {
	s.t.Helper()
	chain := s.topChain(ref)
	s.readsOn("first")
	superblocks := maps.Clone(s.superblocks)
	for _, name := range append([]string{"first"}, snapshots...) {
		s.ctr("snapshots", "--snapshotter", lab.Snapshotter, "rm", name)
	}
	s.removeImages(ref)
	if _, err := s.Client().SnapshotService(lab.Snapshotter).Stat(s.ctx, chain); err == nil {
		s.t.Error("the image's snapshots are still there")
	}
	s.within(releaseTime, "images of layers deleted under the container", s.imagesLeft)
	s.readsOn("first")
	if len(living(superblocks)) == 0 && len(s.instances()) == 0 {
		s.t.Error("neither superblocks nor directories are left, so the container cannot be reading")
	}

	s.must(s.tryPull(ref))
	s.startReader(ref, "second")
	s.readsOn("second")
	s.readsOn("first")
	s.end("first")
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

// startReaderOnDirectory starts a reader on a layer that is a directory and stays one: it holds a redirect of overlayfs, which is no
// part of an image and cannot be converted.
func (s *story) startReaderOnDirectory(ref, id string) {
	s.t.Helper()
	snapshots := []string{"snapshots", "--snapshotter", lab.Snapshotter}
	s.ctr(snapshots, "prepare", "written", s.topChain(ref))
	ctx, release := s.leased()
	defer release()
	sn := s.Client().SnapshotService(lab.Snapshotter)
	mounts, err := sn.Mounts(ctx, "written")
	s.must(err)
	upper := upperDir(mounts)
	big := make([]byte, 8*bigFile)
	rand.NewChaCha8([32]byte{}).Read(big)
	s.must(os.WriteFile(filepath.Join(upper, "big"), big, 0o644))
	s.must(os.Mkdir(filepath.Join(upper, "elsewhere"), 0o755))
	s.must(unix.Setxattr(filepath.Join(upper, "elsewhere"), "trusted.overlay.redirect", []byte("/home"), 0))
	s.ctr(snapshots, "commit", "directory", "written")

	sums, err := baseSums()
	s.must(err)
	img, err := s.Client().GetImage(ctx, ref)
	s.must(err)
	_, err = sn.Prepare(ctx, id, "directory")
	s.must(err)
	c, err := s.Client().NewContainer(ctx, id, containerd.WithSnapshotter(lab.Snapshotter), containerd.WithSnapshot(id),
		containerd.WithNewSpec(oci.WithImageConfig(img), oci.WithProcessArgs(readForEver(fmt.Sprintf("%s%x  /big\n", sums, sha256.Sum256(big)))...)))
	s.must(err)
	s.newTask(c)
	s.noteSuperblocks()
}

// upperDir is what an overlay mount writes to.
func upperDir(mounts []mount.Mount) string {
	for _, m := range mounts {
		for _, o := range m.Options {
			if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
				return dir
			}
		}
	}
	return ""
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
