package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// convertLayers converts the layers that the cases need.
func (b *bench) convertLayers(ctx context.Context, cs []testCase) error {
	b.layers = map[string]fsbackend.Image{}
	for _, c := range cs {
		for _, name := range c.layers {
			if _, ok := b.layers[name]; ok {
				continue
			}
			if err := lab.LayerTar(name).Missing(); err != nil {
				return err
			}
			img, err := convert(ctx, lab.Layer(name), filepath.Join(b.dir, "layers", name))
			if err != nil {
				return fmt.Errorf("layer %s: %w", name, err)
			}
			b.layers[name] = img
		}
	}
	return nil
}

func convert(ctx context.Context, tar, dir string) (fsbackend.Image, error) {
	img := fsbackend.Image{Meta: filepath.Join(dir, "meta.erofs"), Data: filepath.Join(dir, "data")}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return img, err
	}
	in, err := os.Open(tar)
	if err != nil {
		return img, err
	}
	defer in.Close()
	meta, err := os.Create(img.Meta)
	if err != nil {
		return img, err
	}
	defer meta.Close()
	data, err := os.Create(img.Data)
	if err != nil {
		return img, err
	}
	defer data.Close()
	_, err = converter.FromTar(ctx, in, converter.Target{Meta: meta, Data: data}, converter.Limits{})
	return img, errors.Join(err, meta.Sync(), data.Sync())
}

// regular is a regular file of a mounted layer.
type regular struct {
	path string
	size int64
}

// regularFiles are those below root, in the order of their names. Hard links are listed once.
func regularFiles(root string) ([]regular, error) {
	var files []regular
	seen := map[uint64]bool{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if !seen[st.Ino] {
			seen[st.Ino] = true
			files = append(files, regular{path, st.Size})
		}
		return nil
	})
	return files, err
}
