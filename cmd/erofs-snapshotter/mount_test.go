package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMountUsage(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"mount"}, "takes an image and a directory, got 0"},
		{[]string{"mount", "alpine"}, "got 1 arguments"},
		{[]string{"mount", "ALPINE", "/mnt"}, "lowercase"},
		{[]string{"mount", "--platform", "a/b/c/d", "alpine", "/mnt"}, `--platform "a/b/c/d"`},
		{[]string{"mount", "-o", "noexec", "alpine", "/mnt"}, `mount option "noexec" is not known`},
		{[]string{"unmount"}, "takes one directory, got 0"},
		{[]string{"unmount", "/a", "/b"}, "got 2 arguments"},
	} {
		code, stdout, stderr := call(test.args...)
		if code != 2 || !strings.Contains(stderr, test.want) {
			t.Errorf("%q: exit status %d, want 2 with %q\nstdout: %s\nstderr: %s", test.args, code, test.want, stdout, stderr)
		}
	}
}

func TestMountRequest(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{nil, "docker.io/library/alpine:latest on dir, linux/arm64, rw false suid false dev false"},
		{[]string{"--rw"}, "docker.io/library/alpine:latest on dir, linux/arm64, rw true suid false dev false"},
		{[]string{"-o", "rw,suid,dev"}, "docker.io/library/alpine:latest on dir, linux/arm64, rw true suid true dev true"},
		{[]string{"--rw", "-o", "suid,dev", "-o", "nosuid,nodev,ro"}, "docker.io/library/alpine:latest on dir, linux/arm64, rw false suid false dev false"},
	} {
		var req imagemount.Request
		c := mountCommand()
		c.Action = func(_ context.Context, c *cli.Command) (err error) {
			req, err = mountRequest(c)
			return err
		}
		args := append([]string{"mount", "--platform", "linux/arm64/v8"}, test.args...)
		if err := c.Run(t.Context(), append(args, "alpine", "dir")); err != nil {
			t.Errorf("%q: %v", test.args, err)
			continue
		}
		if got := describeRequest(req); got != test.want {
			t.Errorf("%q:\ngot  %s\nwant %s", test.args, got, test.want)
		}
	}
}

func describeRequest(r imagemount.Request) string {
	flag := map[bool]string{true: "true", false: "false"}
	return r.Image.String() + " on " + r.Target + ", " + r.Platform.OS + "/" + r.Platform.Architecture +
		", rw " + flag[r.Writable] + " suid " + flag[r.AllowSetID] + " dev " + flag[r.AllowDevices]
}

// emptyImage writes a layout of an image without layers, which needs no EROFS to be mounted.
func emptyImage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, content []byte) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	blob := func(mediaType string, v any) ocispec.Descriptor {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		d := digest.FromBytes(b)
		write("blobs/sha256/"+d.Encoded(), b)
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
	}
	config := blob(ocispec.MediaTypeImageConfig, ocispec.Image{RootFS: ocispec.RootFS{Type: "layers"}})
	manifest := blob(ocispec.MediaTypeImageManifest, ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config})
	index, err := json.Marshal(ocispec.Index{Manifests: []ocispec.Descriptor{manifest}})
	if err != nil {
		t.Fatal(err)
	}
	write("index.json", index)
	write("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return dir
}

func TestMountAndUnmount(t *testing.T) {
	testenv.Need(t, testenv.Root)
	place, err := os.MkdirTemp("/run", "erofs-snapshotter-test-")
	if err != nil {
		t.Fatal(err)
	}
	root, image, dir := t.TempDir(), emptyImage(t), filepath.Join(place, "mnt")
	t.Cleanup(func() {
		if err := fsbackend.Unmount(dir); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(place); err != nil {
			t.Error(err)
		}
	})
	step := func(code int, want string, args ...string) {
		t.Helper()
		got, stdout, stderr := call(args...)
		if got != code || !strings.Contains(stdout+stderr, want) {
			t.Fatalf("%q: exit status %d, want %d with %q\nstdout: %s\nstderr: %s", args, got, code, want, stdout, stderr)
		}
	}
	step(0, image+" mounted on "+dir+", writable: 0 layers, 0 fetched", "mount", "--root", root, "--rw", image, dir)
	if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	step(1, "--discard", "unmount", "--root", root, dir)
	if err := fsbackend.Unmount(dir); err != nil {
		t.Fatal(err)
	}
	// Another command of the same root reminds of it.
	other := filepath.Join(place, "other")
	step(0, "mount --rw "+image+" "+dir, "mount", "--root", root, "--quiet", image, other)
	step(0, "unmounted from "+other, "unmount", "--root", root, other)
	step(0, "brought back with its changes", "mount", "--root", root, "--rw", image, dir)
	step(0, image+" unmounted from "+dir, "unmount", "--root", root, "--discard", dir)
	// An error names the image, once.
	step(1, "erofs-snapshotter: image /nonexistent/app.tar: stat", "mount", "--root", root, "/nonexistent/app.tar", dir)
}
