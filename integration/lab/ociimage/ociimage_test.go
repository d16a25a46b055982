package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/estargz"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/zstdchunked"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestLayer(t *testing.T) {
	testenv.Need(t, testenv.Root)
	dir := filepath.Join(t.TempDir(), "upper")
	p := func(name string) string { return filepath.Join(dir, name) }
	when := time.Unix(1_600_000_000, 123_456_789)
	must(t,
		os.MkdirAll(p("d"), 0o750),
		os.WriteFile(p("d/file"), []byte("text"), 0o644),
		unix.Chmod(p("d/file"), 0o4755),
		os.Link(p("d/file"), p("d/link")),
		os.Symlink("d/file", p("symlink")),
		unix.Mkfifo(p("fifo"), 0o600),
		unix.Mknod(p("gone"), unix.S_IFCHR, 0),
		unix.Mknod(p("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		os.Mkdir(p("opaque"), 0o755),
		unix.Lsetxattr(p("opaque"), "trusted.overlay.opaque", []byte("y"), 0),
		unix.Lsetxattr(p("d/file"), "trusted.other", []byte("v\x00w"), 0),
		os.Chtimes(p("d/file"), when, when),
	)
	out := filepath.Join(t.TempDir(), "layer.tar")
	must(t, writeLayer(dir, out))

	f, err := os.Open(out)
	must(t, err)
	defer f.Close()
	var names []string
	entries := map[string]*tar.Header{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		names = append(names, h.Name)
		entries[h.Name] = h
	}
	want := []string{"d/", "d/file", "d/link", "fifo", ".wh.gone", "null", "opaque/", "opaque/.wh..wh..opq", "symlink"}
	if !slices.Equal(names, want) {
		t.Fatalf("entries %q\nwant    %q", names, want)
	}
	file := entries["d/file"]
	if file.Mode != 0o4755 || file.Size != 4 || !file.ModTime.Equal(when) || file.PAXRecords["SCHILY.xattr.trusted.other"] != "v\x00w" {
		t.Errorf("d/file is %+v", file)
	}
	if h := entries["d/link"]; h.Typeflag != tar.TypeLink || h.Linkname != "d/file" {
		t.Errorf("d/link is %+v", h)
	}
	if h := entries["null"]; h.Typeflag != tar.TypeChar || h.Devmajor != 1 || h.Devminor != 3 {
		t.Errorf("null is %+v", h)
	}
	if _, ok := entries["opaque/"].PAXRecords["SCHILY.xattr.trusted.overlay.opaque"]; ok {
		t.Errorf("opaque has overlayfs's attributes: %q", entries["opaque/"].PAXRecords)
	}
}

func TestLayout(t *testing.T) {
	layer := filepath.Join(t.TempDir(), "layer.tar")
	content := []byte("not really a tar")
	must(t, os.WriteFile(layer, content, 0o644))
	for name, decompress := range map[string]func(io.Reader) (io.Reader, error){
		"gzip": func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		"zstd": func(r io.Reader) (io.Reader, error) { return zstd.NewReader(r) },
		"none": func(r io.Reader) (io.Reader, error) { return r, nil },
	} {
		out := filepath.Join(t.TempDir(), "layout")
		must(t, writeLayout(out, compression{form: name}, `["/bin/true"]`, []string{layer, layer}))
		manifest, image := readImage(t, out)
		if len(manifest.Layers) != 2 || len(image.RootFS.DiffIDs) != 2 || image.RootFS.DiffIDs[0] != digest.FromBytes(content) {
			t.Fatalf("%s: layers %v, diffIDs %v", name, manifest.Layers, image.RootFS.DiffIDs)
		}
		f, err := os.Open(blob(out, manifest.Layers[0].Digest))
		must(t, err)
		defer f.Close()
		r, err := decompress(f)
		must(t, err)
		got, err := io.ReadAll(r)
		must(t, err)
		if string(got) != string(content) {
			t.Errorf("%s: layer holds %q", name, got)
		}
	}
}

// TestIndexed reads the layers that have an index by it.
func TestIndexed(t *testing.T) {
	layer := tarOf(t, "etc/", "etc/a", "usr/", "usr/b", "usr/c")
	for form, open := range map[string]func(index.Layer, io.ReaderAt, index.Limits) (*index.Index, error){
		"estargz":            estargz.Open,
		"zstdchunked-stargz": zstdchunked.Open,
	} {
		for first, want := range map[string][]string{
			"":      {"etc", "etc/a", "usr", "usr/b", "usr/c"},
			"usr/b": {"usr", "usr/b", "etc", "etc/a", "usr/c"},
		} {
			c := compression{form: form}
			if first != "" {
				c.first = []string{first, "in/another/layer"}
			}
			out := filepath.Join(t.TempDir(), "layout")
			must(t, writeLayout(out, c, "", []string{layer}))
			manifest, _ := readImage(t, out)
			desc := manifest.Layers[0]
			f, err := os.Open(blob(out, desc.Digest))
			must(t, err)
			defer f.Close()
			x, err := open(index.Layer{Annotations: desc.Annotations, Size: desc.Size}, f, index.Limits{})
			must(t, err)
			names, prefetch := readIndex(t, x)
			if !slices.Equal(names, want) || (prefetch > 0) != (first != "") {
				t.Errorf("%s with %q first: %q and %d bytes to prefetch, want %q", form, first, names, prefetch, want)
			}
			if desc.Annotations["io.containers.estargz.uncompressed-size"] == "" {
				t.Errorf("%s has annotations %q", form, desc.Annotations)
			}
		}
	}
}

func readIndex(t *testing.T, x *index.Index) (names []string, prefetch int64) {
	t.Helper()
	r, err := x.Records()
	must(t, err)
	for {
		record, err := r.Next()
		if err == io.EOF {
			return names, r.Prefetch()
		}
		must(t, err)
		names = append(names, record.Name)
	}
}

// tarOf makes an archive of directories, whose names end with a slash, and of files that hold their names.
func tarOf(t *testing.T, names ...string) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "layer.tar"))
	must(t, err)
	defer f.Close()
	w := tar.NewWriter(f)
	for _, name := range names {
		h, content := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(name))}, name
		if strings.HasSuffix(name, "/") {
			h, content = &tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}, ""
		}
		must(t, w.WriteHeader(h))
		_, err := io.WriteString(w, content)
		must(t, err)
	}
	must(t, w.Close())
	return f.Name()
}

// readImage reads the only image of a layout.
func readImage(t *testing.T, layout string) (manifest ocispec.Manifest, image ocispec.Image) {
	t.Helper()
	var index ocispec.Index
	readJSON(t, filepath.Join(layout, "index.json"), "", &index)
	readJSON(t, blob(layout, index.Manifests[0].Digest), index.Manifests[0].Digest, &manifest)
	readJSON(t, blob(layout, manifest.Config.Digest), manifest.Config.Digest, &image)
	return manifest, image
}

func blob(layout string, d digest.Digest) string {
	return filepath.Join(layout, "blobs", d.Algorithm().String(), d.Encoded())
}

// readJSON reads a file, which has the digest if one is given.
func readJSON(t *testing.T, path string, want digest.Digest, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	if got := digest.FromBytes(b); want != "" && got != want {
		t.Fatalf("%s has digest %s", path, got)
	}
	must(t, json.Unmarshal(b, v))
}

func TestBadArguments(t *testing.T) {
	for _, args := range [][]string{nil, {"layers"}, {"layer", "x"}, {"layout", "x.tar"}} {
		if err := run(args); err == nil {
			t.Errorf("arguments %q were accepted", args)
		}
	}
	out := filepath.Join(t.TempDir(), "layout")
	if err := writeLayout(out, compression{form: "bzip2"}, "", []string{os.Args[0]}); err == nil {
		t.Error("compression bzip2 was accepted")
	}
	if _, err := os.Stat(out); !os.IsNotExist(err) {
		t.Errorf("a failure left %s (%v)", out, err)
	}
}
