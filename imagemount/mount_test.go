package imagemount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount/internal/imagetest"
	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount/source"
)

func TestReadOnly(t *testing.T) {
	root, targets := newRoot(t)
	blobs := imagetest.Blobs{}
	manifest := blobs.Image(base, upper)
	layout := blobs.Layout(t, manifest)
	archive := imagetest.Tar(blobs.Files(manifest)...)
	docker := imagetest.Tar(imagetest.DockerFiles("app:v1", base, upper)...)
	for name, path := range map[string]string{
		"layout":      layout,
		"oci archive": imagetest.WriteFile(t, "image.tar", archive),
		"oci gzip":    imagetest.WriteFile(t, "image.tar.gz", imagetest.Gzip(archive)),
		"docker":      imagetest.WriteFile(t, "image.tar", docker),
		"docker zstd": imagetest.WriteFile(t, "image.tar.zst", imagetest.Zstd(docker)),
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(targets, "mnt")
			res, err := mountCommand(t, root, request(path, dir))
			must(t, err)
			if res.Target != dir || res.Layers != 2 || res.Fetched != 2 || res.DiskBytes == 0 {
				t.Errorf("result %+v", res)
			}
			wantTwoLayers(t, dir)
			if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
				t.Errorf("written to: %v", err)
			}
			var st unix.Statfs_t
			must(t, unix.Statfs(dir, &st))
			if want := int64(unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV); st.Flags&want != want {
				t.Errorf("flags %#x, want %#x in them", st.Flags, want)
			}
			_, err = mountCommand(t, root, request(path, dir))
			wantError(t, err, "has a mount of", "unmount "+dir)
			must(t, unmountCommand(t, root, dir, false))
			wantMounted(t, dir, false)
			wantEmpty(t, root)
			wantError(t, unmountCommand(t, root, dir, false), "nothing is mounted on")
		})
	}
}

func TestOneLayerAndNone(t *testing.T) {
	root, targets := newRoot(t)
	for name, tars := range map[string][][]byte{"one": {other}, "none": nil} {
		blobs := imagetest.Blobs{}
		layout := blobs.Layout(t, blobs.Image(tars...))
		for _, write := range []bool{false, true} {
			dir := filepath.Join(targets, name)
			req := request(layout, dir)
			req.Writable, req.AllowSetID, req.AllowDevices = write, true, true
			_, err := mountCommand(t, root, req)
			must(t, err)
			if len(tars) > 0 {
				wantFile(t, filepath.Join(dir, "other"), "other")
			}
			if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); (err == nil) != write {
				t.Errorf("%s, writable %v: %v", name, write, err)
			}
			var st unix.Statfs_t
			must(t, unix.Statfs(dir, &st))
			if st.Flags&(unix.ST_NOSUID|unix.ST_NODEV) != 0 {
				t.Errorf("%s, writable %v: flags %#x", name, write, st.Flags)
			}
			must(t, unmountCommand(t, root, dir, true))
			wantEmpty(t, root)
		}
	}
}

// The options of an overlay of so many layers do not fit the page that mount(2) takes.
func TestManyLayers(t *testing.T) {
	root, targets := newRoot(t)
	dir := filepath.Join(targets, "mnt")
	var tars [][]byte
	for i := range 130 {
		tars = append(tars, imagetest.Tar(imagetest.File{Name: fmt.Sprint(i)}, imagetest.File{Name: "last", Content: fmt.Sprint(i)}))
	}
	blobs := imagetest.Blobs{}
	_, err := mountCommand(t, root, writable(request(blobs.Layout(t, blobs.Image(tars...)), dir)))
	must(t, err)
	wantFile(t, filepath.Join(dir, "last"), "129")
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 131 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	must(t, unmountCommand(t, root, dir, false))
	wantEmpty(t, root)
}

func TestLayersAreShared(t *testing.T) {
	root, targets := newRoot(t)
	blobs := imagetest.Blobs{}
	layouts := []string{blobs.Layout(t, blobs.Image(base, upper)), blobs.Layout(t, blobs.Image(base, other))}
	for i, fetched := range []int{2, 1} {
		res, err := mountCommand(t, root, request(layouts[i], filepath.Join(targets, string(rune('a'+i)))))
		must(t, err)
		if res.Fetched != fetched {
			t.Errorf("mount %d fetched %d blobs, want %d", i, res.Fetched, fetched)
		}
	}
	layers := func() int {
		entries, err := os.ReadDir(filepath.Join(root, "layers"))
		must(t, err)
		return len(entries)
	}
	if n := layers(); n != 3 {
		t.Errorf("%d layers on disk, want 3", n)
	}
	wantError(t, unmountCommand(t, root, filepath.Join(targets, "c"), false), filepath.Join(targets, "a")+" (")
	must(t, unmountCommand(t, root, filepath.Join(targets, "a"), false))
	if n := layers(); n != 2 {
		t.Errorf("%d layers on disk, want 2", n)
	}
	wantFile(t, filepath.Join(targets, "b", "etc/gone"), "gone")
	must(t, unmountCommand(t, root, filepath.Join(targets, "b"), false))
	wantEmpty(t, root)
}

// A target that cannot be used is refused before anything is fetched.
func TestTargetIsCheckedFirst(t *testing.T) {
	root, targets := newRoot(t)
	must(t, os.Symlink("/mnt", filepath.Join(targets, "link")))
	for dir, want := range map[string]string{
		filepath.Join(targets, "link"):  "symbolic link",
		filepath.Join(t.TempDir(), "x"): "may be written by others",
	} {
		req := request("", dir)
		req.Image = source.Name{Kind: source.InRegistry, Reference: "example.org/x:y"} // would fail for want of a client
		_, err := mountCommand(t, root, req)
		wantError(t, err, want)
	}
	wantEmpty(t, root)
}

// registry is one image whose blobs are served by a function.
type registry struct {
	imagetest.Blobs
	desc ocispec.Descriptor
	open func(context.Context, ocispec.Descriptor) (io.ReadCloser, error)
}

func (r registry) Resolve(context.Context, string) (ocispec.Descriptor, error) { return r.desc, nil }
func (r registry) Document(_ context.Context, _ string, desc ocispec.Descriptor) ([]byte, error) {
	return r.Blobs[desc.Digest], nil
}
func (r registry) Open(ctx context.Context, _ string, desc ocispec.Descriptor) (io.ReadCloser, error) {
	return r.open(ctx, desc)
}

func fromRegistry(r registry, dir string) Request {
	req := request("", dir)
	req.Image = source.Name{Kind: source.InRegistry, Reference: "example.org/app:v1"}
	req.Source.Registry = r
	return req
}

func TestImagesThatFail(t *testing.T) {
	root, targets := newRoot(t)
	dir := filepath.Join(targets, "mnt")
	blobs := imagetest.Blobs{}
	good := blobs.Image(base, upper)
	bad := blobs.Add(ocispec.MediaTypeImageLayerGzip, imagetest.Gzip(upper))
	promised := []digest.Digest{digest.FromBytes(base), digest.FromString("another")}
	liar := blobs.Manifest(ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: promised}},
		blobs.Add(ocispec.MediaTypeImageLayerGzip, imagetest.Gzip(base)), bad)
	plain := func(content []byte) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(string(content))), nil
	}
	for name, c := range map[string]struct {
		desc ocispec.Descriptor
		open func(context.Context, ocispec.Descriptor) (io.ReadCloser, error)
		want []string
	}{
		"diffID": {liar, func(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
			return plain(blobs[desc.Digest])
		},
			[]string{"layer 2 of 2: ", bad.Digest.String(), "the image lies", promised[1].String()}},
		"blob": {good, func(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
			if desc.Digest == bad.Digest {
				return plain(imagetest.Gzip(other))
			}
			return plain(blobs[desc.Digest])
		}, []string{"layer 2 of 2: ", bad.Digest.String(), "digest mismatch"}},
		"no blob": {good, func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) { return nil, errors.New("gone") },
			[]string{"example.org/app:v1", "gone"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := mountCommand(t, root, fromRegistry(registry{blobs, c.desc, c.open}, dir))
			wantError(t, err, c.want...)
			wantEmpty(t, root)
			if _, err := os.Lstat(dir); !os.IsNotExist(err) {
				t.Errorf("the directory that was made for it: %v", err)
			}
		})
	}
}

// A signal ends ctx while a layer stands still in the middle.
func TestCancelled(t *testing.T) {
	root, targets := newRoot(t)
	blobs := imagetest.Blobs{}
	r := registry{Blobs: blobs, desc: blobs.Image(base, upper)}
	ctx, cancel := context.WithCancel(t.Context())
	r.open = func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
		in, out := io.Pipe()
		context.AfterFunc(ctx, func() { out.CloseWithError(ctx.Err()) })
		go func() {
			_, _ = out.Write(blobs[desc.Digest][:20])
			cancel()
		}()
		return in, nil
	}
	err := command(ctx, options(root), func(root *Root) error {
		_, err := root.Mount(ctx, fromRegistry(r, filepath.Join(targets, "mnt")))
		return err
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	wantEmpty(t, root)
}
