package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// layer is one of the lab's layers.
type layer struct{ name, file string }

func layerName(l layer) string { return l.name }

var layers = []layer{
	{"debian", "base"},       // a minimal Debian
	{"node", "node-modules"}, // more than 80,000 files
	{"scipy", "scipy"},       // numpy, scipy and what they depend on
}

// The forms of a layer.
const (
	plain = "tar"
	gz    = "tar.gz"
	zst   = "tar.zst"
)

// compressors read the tar from standard input and write to standard output.
var compressors = map[string]string{gz: "gzip -6 -n -c", zst: "zstd -3 -q -c"}

// input is a layer in one form.
type input struct {
	layer, form string
	path        string
	digest      digest.Digest
	tarBytes    int64
}

// prepare finds a layer in the lab's cache and makes its compressed forms there, once.
func prepare(ctx context.Context, l layer) (map[string]input, error) {
	tar := lab.Layer(l.file)
	st, err := os.Stat(tar)
	if err != nil {
		return nil, fmt.Errorf("%w (make images)", err)
	}
	inputs := map[string]input{}
	for _, form := range []string{plain, gz, zst} {
		in := input{layer: l.name, form: form, path: tar, tarBytes: st.Size()}
		if form != plain {
			if in.path, err = compressed(ctx, tar, form); err != nil {
				return nil, err
			}
		}
		if in.digest, err = digestOf(in.path); err != nil {
			return nil, err
		}
		inputs[form] = in
	}
	return inputs, nil
}

// compressed is a compressed copy of a layer, made anew when the layer is newer.
func compressed(ctx context.Context, tar, form string) (string, error) {
	dir := filepath.Join(lab.Cache(), "bench")
	path := filepath.Join(dir, filepath.Base(tar)+filepath.Ext(form))
	if old, err := os.Stat(path); err == nil {
		if st, err := os.Stat(tar); err == nil && st.ModTime().Before(old.ModTime()) {
			return path, nil
		}
	}
	benchkit.Progress("%s %s", compressors[form], filepath.Base(tar))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	part := path + ".part"
	defer os.Remove(part)
	if err := shell(ctx, compressors[form]+` <"$IN" >"$OUT"`, tar, part); err != nil {
		return "", err
	}
	return path, os.Rename(part, path)
}

func digestOf(path string) (digest.Digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return digest.NewDigest(digest.SHA256, h), nil
}
