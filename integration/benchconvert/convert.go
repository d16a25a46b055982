package main

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/benchkit"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// importLayer is ours.
func importLayer(ctx context.Context, j job, r *report) error {
	store, err := layerstore.Open(j.output, layerstore.Options{})
	if err != nil {
		return err
	}
	instance, pin, err := store.Import(ctx, j.digest, func(context.Context) (io.ReadCloser, error) { return os.Open(j.input) })
	pin.Release()
	r.Inodes = instance.Inodes
	return errors.Join(err, store.Close())
}

// applyLayer is how containerd unpacks a layer for overlayfs. It starts igzip.
func applyLayer(ctx context.Context, j job, _ *report) error {
	f, err := os.Open(j.input)
	if err != nil {
		return err
	}
	defer f.Close()
	tar, err := compression.DecompressStream(f)
	if err != nil {
		return err
	}
	defer tar.Close()
	if _, err := archive.Apply(ctx, j.output, tar); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, tar); err != nil { // as containerd does, for the digest
		return err
	}
	_, err = benchkit.SyncDisk(j.output)
	return err
}
