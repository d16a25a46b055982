package imagemount

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/file"
	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount/internal/imagetest"
	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount/source"
	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount/target"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMain(m *testing.M) {
	if root := os.Getenv(childRoot); root != "" {
		childMain(root)
		os.Exit(0)
	}
	os.Exit(testenv.Main(m))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newRoot returns a root directory, and a directory for targets. Whatever is mounted in them goes when the test ends.
func newRoot(t *testing.T) (root, targets string) {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.EROFS)
	root = t.TempDir()
	// Targets may not be below /tmp.
	targets, err := os.MkdirTemp("/run", "erofs-snapshotter-test-")
	must(t, err)
	t.Cleanup(func() {
		for _, dir := range []string{targets, root} {
			points, err := fsbackend.MountsBelow(dir)
			if err != nil {
				t.Error(err)
			}
			for i := len(points) - 1; i >= 0; i-- {
				if err := fsbackend.Unmount(points[i]); err != nil {
					t.Error(err)
				}
			}
		}
		if err := os.RemoveAll(targets); err != nil {
			t.Error(err)
		}
	})
	return root, targets
}

func options(root string) Options {
	return Options{Path: root, Backend: file.New(file.Options{}), Wait: time.Minute}
}

// command does one thing with a root, as a command does.
func command(ctx context.Context, opts Options, do func(*Root) error) error {
	r, err := Open(ctx, opts)
	if err != nil {
		return err
	}
	err = do(r)
	if cerr := r.Close(ctx); err == nil {
		err = cerr
	}
	return err
}

func mountCommand(t *testing.T, root string, req Request) (res Result, err error) {
	t.Helper()
	err = command(t.Context(), options(root), func(r *Root) (err error) {
		res, err = r.Mount(t.Context(), req)
		return err
	})
	return res, err
}

func unmountCommand(t *testing.T, root, dir string, discard bool) error {
	t.Helper()
	return command(t.Context(), options(root), func(r *Root) error {
		_, err := r.Unmount(t.Context(), dir, discard)
		return err
	})
}

type noProgress struct{}

func (noProgress) Begin([]ocispec.Descriptor, int) {}
func (noProgress) Read(digest.Digest, int)         {}
func (noProgress) Done(digest.Digest)              {}

func request(path, dir string) Request {
	return Request{
		Image: source.Name{Kind: source.Local, Path: path}, Target: dir,
		Platform: platforms.MustParse("linux/amd64"), Progress: noProgress{},
	}
}

func writable(req Request) Request {
	req.Writable = true
	return req
}

var (
	base = imagetest.Tar(imagetest.File{Name: "etc/"}, imagetest.File{Name: "etc/keep", Content: "kept"},
		imagetest.File{Name: "etc/gone", Content: "gone"}, imagetest.File{Name: "dir/"}, imagetest.File{Name: "dir/hidden", Content: "hidden"},
		imagetest.File{Name: "large", Content: strings.Repeat("large ", 100_000)})
	upper = imagetest.Tar(imagetest.File{Name: "etc/"}, imagetest.File{Name: "etc/.wh.gone"}, imagetest.File{Name: "dir/"},
		imagetest.File{Name: "dir/.wh..wh..opq"}, imagetest.File{Name: "new", Content: "new"})
	other = imagetest.Tar(imagetest.File{Name: "other", Content: "other"})
)

// twoLayers writes a layout of an image with whiteouts.
func twoLayers(t *testing.T) string {
	t.Helper()
	blobs := imagetest.Blobs{}
	return blobs.Layout(t, blobs.Image(base, upper))
}

// wantTwoLayers checks what a mount of twoLayers shows.
func wantTwoLayers(t *testing.T, dir string) {
	t.Helper()
	wantFile(t, filepath.Join(dir, "etc/keep"), "kept")
	wantFile(t, filepath.Join(dir, "new"), "new")
	wantFile(t, filepath.Join(dir, "large"), strings.Repeat("large ", 100_000))
	for _, name := range []string{"etc/gone", "dir/hidden"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !os.IsNotExist(err) {
			t.Errorf("%s: %v, want it gone", name, err)
		}
	}
}

func wantFile(t *testing.T, path, content string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || string(b) != content {
		t.Errorf("%s: %d bytes, %v, want %d", path, len(b), err, len(content))
	}
}

func wantMounted(t *testing.T, dir string, want bool) {
	t.Helper()
	if _, got, err := target.Mounted(dir); err != nil || got != want {
		t.Errorf("%s: mounted %v, %v, want %v", dir, got, err, want)
	}
}

// wantEmpty checks that a root holds nothing but its metadata.
func wantEmpty(t *testing.T, root string) {
	t.Helper()
	must(t, filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, path)
		if err == nil && rel != "metadata.db" && (!e.IsDir() || strings.Contains(rel, "/")) {
			t.Errorf("%s is left in the root", rel)
		}
		return err
	}))
	points, err := fsbackend.MountsBelow(root)
	if err != nil || len(points) > 0 {
		t.Errorf("mounts left: %v, %v", points, err)
	}
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("got error %v\nwant %q in it", err, part)
		}
	}
}

// detach is what a user's umount, or a reboot, does.
func detach(t *testing.T, path string) {
	t.Helper()
	must(t, unix.Unmount(path, 0))
}

// logHandler calls a function with each message, of every level.
type logHandler func(message string)

func (h logHandler) Enabled(context.Context, slog.Level) bool      { return true }
func (h logHandler) Handle(_ context.Context, r slog.Record) error { h(r.Message); return nil }
func (h logHandler) WithAttrs([]slog.Attr) slog.Handler            { return h }
func (h logHandler) WithGroup(string) slog.Handler                 { return h }
