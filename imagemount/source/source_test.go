package source

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount/internal/imagetest"
)

var layer = imagetest.Tar(imagetest.File{Name: "hello", Content: "world"})

// wantImage opens an image, and reads its documents and its one layer.
func wantImage(t *testing.T, name Name, opts Options) {
	t.Helper()
	s, err := Open(t.Context(), name, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	found, err := s.Resolve(t.Context())
	if err != nil || len(found) != 1 {
		t.Fatalf("resolve: %v, %v", found, err)
	}
	b, err := s.Document(t.Context(), found[0])
	if err != nil || digest.FromBytes(b) != found[0].Digest {
		t.Fatalf("manifest %s: %q, %v", found[0].Digest, b, err)
	}
	if _, err := parseIndex(b); err != nil {
		t.Error(err)
	}
	config, desc := contentsOf(t, b)
	if b, err := s.Document(t.Context(), config); err != nil || digest.FromBytes(b) != config.Digest {
		t.Errorf("config: %q, %v", b, err)
	}
	blob, err := s.Open(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	got, err := io.ReadAll(blob)
	if err != nil || digest.FromBytes(got) != desc.Digest || int64(len(got)) != desc.Size {
		t.Errorf("layer: %d bytes, want %d, %v", len(got), desc.Size, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cut, err := s.Open(ctx, desc)
	if err != nil {
		t.Fatal(err)
	}
	defer cut.Close()
	cancel()
	if _, err := cut.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("a read after the context ended: %v", err)
	}
}

// contentsOf returns the config and the only layer of a manifest.
func contentsOf(t *testing.T, manifest []byte) (config, layer ocispec.Descriptor) {
	t.Helper()
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil || len(m.Layers) != 1 {
		t.Fatalf("manifest %s: %v", manifest, err)
	}
	return m.Config, m.Layers[0]
}

func TestEverySource(t *testing.T) {
	blobs := imagetest.Blobs{}
	manifest := blobs.Image(layer)
	oci := imagetest.Tar(blobs.Files(manifest)...)
	docker := imagetest.Tar(imagetest.DockerFiles("app:v1", layer)...)
	both := imagetest.Tar(append(imagetest.DockerFiles("app:v1", layer), blobs.Files(manifest)...)...)
	for name, c := range map[string]struct {
		kind Kind
		path string
	}{
		"layout":               {OCILayout, blobs.Layout(t, manifest)},
		"layout, guessed":      {Local, blobs.Layout(t, manifest)},
		"oci archive":          {OCIArchive, imagetest.WriteFile(t, "x", oci)},
		"oci archive, guessed": {Local, imagetest.WriteFile(t, "x", oci)},
		"oci archive, gzip":    {Local, imagetest.WriteFile(t, "x", imagetest.Gzip(oci))},
		"oci archive, zstd":    {Local, imagetest.WriteFile(t, "x", imagetest.Zstd(oci))},
		"docker":               {DockerArchive, imagetest.WriteFile(t, "x", docker)},
		"docker, guessed":      {Local, imagetest.WriteFile(t, "x", docker)},
		"docker, gzip":         {Local, imagetest.WriteFile(t, "x", imagetest.Gzip(docker))},
		"both forms":           {Local, imagetest.WriteFile(t, "x", both)},
		"both forms, docker":   {DockerArchive, imagetest.WriteFile(t, "x", both)},
	} {
		t.Run(name, func(t *testing.T) {
			scratch := t.TempDir()
			wantImage(t, Name{Kind: c.kind, Path: c.path}, Options{Scratch: scratch})
			if left, err := os.ReadDir(scratch); err != nil || len(left) > 0 {
				t.Errorf("left in scratch: %v, %v", left, err)
			}
		})
	}
}

// docker save made links for a layer that is there twice, and old tools compressed layers.
func TestDockerForms(t *testing.T) {
	files := imagetest.DockerFiles("app:v1", layer)
	files[0].Content = string(imagetest.Gzip(layer))
	wantImage(t, Name{Kind: DockerArchive, Path: imagetest.WriteFile(t, "x", imagetest.Tar(files...))}, Options{})

	a := &archive{entries: map[string]entry{
		"a/layer.tar": {size: 1},
		"b/layer.tar": {link: "a/layer.tar"},
		"c":           {link: "c"},
	}}
	if e, err := a.find("./b/../b/layer.tar"); err != nil || e.size != 1 {
		t.Errorf("through a link: %+v, %v", e, err)
	}
	if _, err := a.find("c"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link to itself: %v", err)
	}
	if _, err := a.find("../../etc/passwd"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a name that leads out: %v", err)
	}
}

func TestSeveralImages(t *testing.T) {
	blobs := imagetest.Blobs{}
	one := imagetest.Named(blobs.Image(layer), "docker.io/library/one:latest")
	two := imagetest.Named(blobs.Image(layer, layer), "docker.io/library/two:latest")
	dir := blobs.Layout(t, one, two)
	for tag, want := range map[string]digest.Digest{"one": one.Digest, "two:latest": two.Digest, "docker.io/library/two:latest": two.Digest} {
		s, err := Open(t.Context(), Name{Kind: OCILayout, Path: dir, Tag: tag}, Options{})
		if err != nil {
			t.Errorf("%s: %v", tag, err)
			continue
		}
		if found, _ := s.Resolve(t.Context()); len(found) != 1 || found[0].Digest != want {
			t.Errorf("%s: %v", tag, found)
		}
		s.Close()
	}
	for tag, want := range map[string]string{"": "several images", "latest": "several images", "three": `no image "three"`} {
		_, err := Open(t.Context(), Name{Kind: OCILayout, Path: dir, Tag: tag}, Options{})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "library/two:latest") {
			t.Errorf("%q: %v, want %q and the names", tag, err, want)
		}
	}
}

func TestRefused(t *testing.T) {
	blobs := imagetest.Blobs{}
	manifest := blobs.Image(layer)
	dir := blobs.Layout(t, manifest)
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	docker := imagetest.DockerFiles("app:v1", layer)
	lying := append([]imagetest.File(nil), docker...)
	lying[1].Content += " "
	for name, c := range map[string]struct {
		name Name
		want string
	}{
		"missing":             {Name{Kind: Local, Path: "/nonexistent/x"}, "no such file"},
		"no layout":           {Name{Kind: Local, Path: t.TempDir()}, "no OCI image layout"},
		"a pipe":              {Name{Kind: Local, Path: pipe}, "neither a directory nor a regular file"},
		"archive as a layout": {Name{Kind: OCILayout, Path: imagetest.WriteFile(t, "x", nil)}, "oci-archive:"},
		"layout as archive":   {Name{Kind: OCIArchive, Path: dir}, "oci:"},
		"no tar":              {Name{Kind: Local, Path: imagetest.WriteFile(t, "x", bytes.Repeat([]byte("no tar "), 1000))}, "tar archive"},
		"cut short":           {Name{Kind: Local, Path: imagetest.WriteFile(t, "x", imagetest.Tar(docker...)[:1200])}, "EOF"},
		"cut gzip":            {Name{Kind: Local, Path: imagetest.WriteFile(t, "x", imagetest.Gzip(imagetest.Tar(docker...))[:60])}, "EOF"},
		"config lies":         {Name{Kind: Local, Path: imagetest.WriteFile(t, "x", imagetest.Tar(lying...))}, "digest mismatch"},
		"empty tar":           {Name{Kind: Local, Path: imagetest.WriteFile(t, "x", imagetest.Tar())}, "no archive of docker save"},
		"no registry client":  {Name{Kind: InRegistry, Reference: "example.org/x:y"}, "no registry client"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Open(t.Context(), c.name, Options{Scratch: t.TempDir()})
			if err == nil {
				s.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// A layout is somebody else's directory: nothing outside of it is opened for it, and no pipe blocks the reader.
func TestLayoutStaysInside(t *testing.T) {
	outside := imagetest.WriteFile(t, "secret", []byte("x"))
	dir := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	files, err := openDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	for _, name := range []string{"link", "../" + filepath.Base(outside), outside, "pipe", "."} {
		if f, err := files.open(name); err == nil {
			f.Close()
			t.Errorf("%s was opened", name)
		}
	}
}
