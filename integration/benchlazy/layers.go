package main

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// formsVersion is part of the names of what is kept in the cache. Raise it with every change of contents.
const formsVersion = "1"

// contents are the files of a layer, made from a seed.
type contents struct {
	files, fileBytes int
	// fill makes the bytes of one file.
	fill func(r *rand.ChaCha8, p []byte)
}

// random bytes are as good as compressed already.
func random(r *rand.ChaCha8, p []byte) { _, _ = r.Read(p) }

// packed bytes shrink to about a third of their size, as programs and texts do: words of a small vocabulary, with a random one in between.
func packed(r *rand.ChaCha8, p []byte) {
	for len(p) >= 8 {
		v := r.Uint64()
		if v&7 != 0 {
			v = 0x2065666f72650000 | v>>8&0x3ff // one of 1024 words
		}
		binary.LittleEndian.PutUint64(p, v)
		p = p[8:]
	}
}

// layout is an OCI layout in the cache with an image of layers.
type layout struct {
	name   string // unique; becomes the repository
	form   string // of ociimage
	layers []contents
}

// path is where it is kept.
func (l layout) path() string {
	return filepath.Join(lab.Cache(), "bench", "lazy-"+formsVersion, l.name+"-"+l.form)
}

// image is its name in the lab's registry, see lab.Lab.Ref.
func (l layout) image() string { return l.name + "-" + l.form }

// make makes it, unless it is there.
func (l layout) make(ctx context.Context) (err error) {
	if _, err := os.Stat(filepath.Join(l.path(), "index.json")); err == nil {
		return nil
	}
	benchkit.Progress("make %s", l.path())
	if err := os.MkdirAll(filepath.Dir(l.path()), 0o755); err != nil {
		return err
	}
	temporary, err := os.MkdirTemp(filepath.Dir(l.path()), "part-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temporary)) }()
	args := []string{"layout", "-compression", l.form, "-o", l.path()}
	for i, c := range l.layers {
		path := filepath.Join(temporary, fmt.Sprintf("%d.tar", i))
		if err := c.writeTar(path, l.name, i); err != nil {
			return err
		}
		args = append(args, path)
	}
	cmd := exec.CommandContext(ctx, lab.Program("ociimage"), args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+temporary) // for the pieces that eStargz is put together of
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ociimage (make images): %w: %s", err, out)
	}
	return nil
}

// writeTar makes the archive of a layer. Its contents depend on the names only.
func (c contents) writeTar(path, image string, layer int) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buffered := bufio.NewWriterSize(f, 1<<20)
	w := tar.NewWriter(buffered)
	var seed [32]byte
	copy(seed[:], fmt.Sprintf("%s %d", image, layer))
	r := rand.NewChaCha8(seed)
	p := make([]byte, c.fileBytes)
	for i := range c.files {
		c.fill(r, p)
		if err := w.WriteHeader(&tar.Header{Name: fileName(layer, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(p))}); err != nil {
			return err
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), buffered.Flush())
}

// fileName is that of a file in the tree of an image.
func fileName(layer, file int) string { return fmt.Sprintf("layer%d-file%d", layer, file) }

// readWhole reads a file from its front to its back with a buffer.
func readWhole(path string, buf []byte) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var total int64
	for {
		n, err := f.Read(buf)
		total += int64(n)
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}
