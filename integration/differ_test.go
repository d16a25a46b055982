package integration

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/treediff"
)

// TestOverlayfsWithoutDaemon shows that images of other snapshotters do not need us.
func TestOverlayfsWithoutDaemon(t *testing.T) {
	s := newStory(t, storyTime, lab.Options{NoDaemon: true, Images: []string{"busybox-gzip", "busybox-zstd"}})
	ref := s.Ref("busybox-gzip")
	s.ctr("image", "pull", "--plain-http", "--snapshotter", "overlayfs", ref)
	if out := s.ctr("run", "--rm", "--snapshotter", "overlayfs", ref, "box", "/bin/echo", "hello"); out != "hello\n" {
		t.Errorf("the container printed %q", out)
	}
	if err := s.tryPull(s.Ref("busybox-zstd")); err == nil {
		t.Error("a pull with our snapshotter succeeds without our daemon")
	}
	s.must(s.StartSnapshotter(s.ctx))
	s.within(storyTime/4, "pull with our daemon, which came late", func() error { return s.tryPull(ref) })
}

// TestSameContent pulls an image with containerd's overlayfs snapshotter, with our differ, and with containerd's walking differ over
// our snapshotter: containers see the same tree each time.
func TestSameContent(t *testing.T) {
	for _, differ := range []string{lab.Differ, "walking"} {
		t.Run(differ, func(t *testing.T) {
			s := newStory(t, storyTime, lab.Options{Differ: differ, Images: []string{"nginx-gzip"}})
			ref := s.pull("nginx-gzip")
			if differ == "walking" {
				s.within(storyTime/4, "directories converted", s.directoriesLeft)
			}
			s.ctr("image", "pull", "--plain-http", "--snapshotter", "overlayfs", ref)
			want, got := s.view("overlayfs", s.topChain(ref)), s.view(lab.Snapshotter, s.topChain(ref))
			if len(want) < 5000 {
				t.Errorf("overlayfs shows only %d paths", len(want))
			}
			// No layer says when the root was changed, so the kernel's clock or ours decides.
			want[0].Mtime = got[0].Mtime
			same(t, want, got)
			s.removeImages(ref)
			s.released()
		})
	}
}

// directoriesLeft is an error while there is a layer that is not an image.
func (s *story) directoriesLeft() error {
	dirs, err := filepath.Glob(filepath.Join(s.SnapshotterRoot(), "layers/*/dir"))
	if err != nil || len(dirs) > 0 {
		return fmt.Errorf("directories %q (%v)", dirs, err)
	}
	return nil
}

// view scans a committed snapshot.
func (s *story) view(snapshotter, name string) []treediff.Record {
	s.t.Helper()
	target := s.t.TempDir()
	ctx, release := s.leased()
	defer release()
	mounts, err := s.Client().SnapshotService(snapshotter).View(ctx, "view", name)
	s.must(err)
	s.noteSuperblocks()
	s.must(mount.All(mounts, target))
	defer unmount(s.t, target)
	return scan(s.t, target)
}

// TestForeignMounts asks our differ for what is not ours to do. containerd then asks its next differ, so our differ may stand in the
// list of its diff service.
func TestForeignMounts(t *testing.T) {
	s := newStory(t, storyTime, lab.Options{Images: []string{"busybox-gzip"}})
	ref := s.Ref("busybox-gzip")
	s.ctr("image", "pull", "--plain-http", "--snapshotter", "overlayfs", ref)
	layer := s.layers(ref)[0]
	conn, err := grpc.NewClient("unix://"+s.SnapshotterAddress(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	s.must(err)
	defer conn.Close()
	differ := proxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(interface {
		diff.Applier
		diff.Comparer
	})

	ctx, release := s.leased()
	defer release()
	foreign, err := s.Client().SnapshotService("overlayfs").Prepare(ctx, "foreign", "")
	s.must(err)
	ours, err := s.Client().SnapshotService(lab.Snapshotter).Prepare(ctx, "ours", "")
	s.must(err)
	encrypted := layer
	encrypted.MediaType += "+encrypted"
	notImplemented := func(what string, err error) {
		t.Helper()
		if !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: %v, want not implemented", what, err)
		}
	}
	_, err = differ.Apply(s.ctx, layer, foreign)
	notImplemented("layer over mounts of overlayfs", err)
	_, err = differ.Apply(s.ctx, encrypted, ours)
	notImplemented("encrypted layer over our mounts", err)
	_, err = differ.Compare(s.ctx, ours, ours)
	notImplemented("compare", err)
	if _, err = differ.Apply(s.ctx, layer, ours); err != nil {
		t.Errorf("layer over our mounts: %v", err)
	}
}

// layers are the layers of an image, the lowest first.
func (s *story) layers(ref string) []ocispec.Descriptor {
	s.t.Helper()
	img, err := s.Client().GetImage(s.ctx, ref)
	s.must(err)
	manifest, err := images.Manifest(s.ctx, s.Client().ContentStore(), img.Target(), platforms.Default())
	s.must(err)
	return manifest.Layers
}

// TestCorruptLayer damages a layer where it is kept. The pull fails with an error that names it, nothing is left, and the next pull of
// the right bytes succeeds.
func TestCorruptLayer(t *testing.T) {
	s := newStory(t, storyTime, lab.Options{Images: []string{"nginx-gzip"}})
	ref := s.Ref("nginx-gzip")
	s.ctr("image", "pull", "--plain-http", "--snapshotter", "overlayfs", ref)
	layer := s.layers(ref)[1]
	name := layer.Digest.Encoded()
	stored := filepath.Join(s.ContainerdRoot(), "io.containerd.content.v1.content/blobs/sha256", name)
	s.failsOn(ref, stored, 4, layer)            // the time in gzip's header: the content is the same, the digest is not
	s.failsOn(ref, stored, layer.Size/2, layer) // compressed data

	s.removeImages(ref)
	s.failsOn(ref, filepath.Join(s.Dir, "registry/docker/registry/v2/blobs/sha256", name[:2], name, "data"), layer.Size/2, layer)
	s.must(s.tryPull(ref))
	s.runs(programs[0], ref)
	s.removeImages(ref)
	s.released()
}

// failsOn expects that a pull fails while one byte of the file is wrong.
func (s *story) failsOn(ref, file string, offset int64, layer ocispec.Descriptor) {
	s.t.Helper()
	flip := func() {
		s.t.Helper()
		f, err := os.OpenFile(file, os.O_RDWR, 0)
		s.must(err)
		var b [1]byte
		_, err = f.ReadAt(b[:], offset)
		s.must(err)
		b[0] ^= 0xff
		_, err = f.WriteAt(b[:], offset)
		s.must(errors.Join(err, f.Close()))
	}
	flip()
	err := s.tryPull(ref)
	flip()
	if err == nil || !strings.Contains(err.Error(), layer.Digest.String()) {
		s.t.Errorf("pull with byte %d wrong: %v, want an error that names layer %s", offset, err, layer.Digest)
	}
	s.t.Logf("pull with byte %d wrong: %v", offset, err)
	s.collect()
	s.within(releaseTime, "nothing left of the failed pull", s.leftovers)
}

// TestSharedLayers pulls two images at once, of which one layer is the same, and the same image twice. Each layer is converted once.
func TestSharedLayers(t *testing.T) {
	s := newStory(t, storyTime, lab.Options{Images: []string{"nginx-gzip", "node-gzip"}})
	layers := filepath.Join(s.SnapshotterRoot(), "layers")
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	s.must(err)
	defer unix.Close(watch)
	_, err = unix.InotifyAddWatch(watch, layers, unix.IN_CREATE)
	s.must(err)

	refs := []string{s.Ref("nginx-gzip"), s.Ref("node-gzip"), s.Ref("nginx-gzip")}
	done := make(chan error, len(refs))
	for _, ref := range refs {
		go func() {
			_, err := s.Ctr(s.ctx, "image", "pull", "--plain-http", "--snapshotter", lab.Snapshotter, ref)
			done <- err
		}()
	}
	for range refs {
		s.must(<-done)
	}
	want := map[string]bool{}
	for _, ref := range refs {
		for _, layer := range s.layers(ref) {
			want[layer.Digest.String()] = true
		}
	}
	if len(want) != 5 {
		t.Fatalf("the images have the layers %v, want 5 with one in common", want)
	}
	begun := created(t, watch)
	if n := len(s.instances()); n != len(want) || len(begun) != n {
		t.Errorf("%d layers became %d instances, and these conversions were begun: %q", len(want), n, begun)
	}
	s.removeImages(refs[:2]...)
	s.released()
}

// created returns the names of the files that an inotify descriptor has seen being made.
func created(t *testing.T, watch int) []string {
	t.Helper()
	var names []string
	events := make([]byte, 64<<10)
	for {
		n, err := unix.Read(watch, events)
		if errors.Is(err, unix.EAGAIN) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		for rest := events[:n]; len(rest) > 0; {
			// struct inotify_event: wd, mask, cookie, len, and len bytes of name.
			length := binary.NativeEndian.Uint32(rest[12:])
			names = append(names, string(bytes.TrimRight(rest[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+length], "\x00")))
			rest = rest[unix.SizeofInotifyEvent+length:]
		}
	}
}
