// Package differ is a diff service that turns a layer straight into an EROFS instance, without unpacking it.
//
// containerd hands over a layer's descriptor and the mounts of the active snapshot that it belongs on. When the mounts are ours,
// the layer is read from containerd's content store, converted in one pass, and bound to that snapshot; Commit then finds the
// instance ready. Nothing is written below the mounts.
//
// What is not ours to do is answered with errdefs.ErrNotImplemented, on which containerd's diff service asks its next differ:
// mounts of other snapshotters, layers that are not tar (EROFS images, encrypted layers, types of other tools),
// layers whose digest is not SHA-256 (another would not be checked), and Compare, which containerd's walking differ does on any mount.
//
// containerd applies the layers of an image one after the other. While it waits for one, those above it that it has fetched are converted
// as well, as far as the layer store has room.
//
// Converting is shared: any number of snapshots that ask for the same layer at once wait for one conversion, and a layer that is
// there already is bound without reading a byte. A crash leaves the snapshot unbound; containerd applies again on the next pull.
package differ

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// Binder knows the active snapshots.
type Binder interface {
	// ActiveSnapshot returns the active snapshot of ours that the mounts write to; ok is false when they are not ours.
	ActiveSnapshot(ctx context.Context, mounts []mount.Mount) (id string, ok bool)
	// Bind makes the instance, made from the layer, that of the active snapshot. Binding the same one again does nothing; a snapshot
	// that has another one already is an error.
	Bind(ctx context.Context, snapshotID string, instance layerstore.ID, layer ocispec.Descriptor) error
}

// Source is where the bytes of layers are. The namespace of the request is in ctx.
type Source interface {
	Open(ctx context.Context, layer ocispec.Descriptor) (io.ReadCloser, error)
}

// Differ implements the service. Safe for concurrent use.
type Differ struct {
	snapshots Binder
	layers    *layerstore.Store
	source    Source
}

var (
	_ diff.Applier  = (*Differ)(nil)
	_ diff.Comparer = (*Differ)(nil)
)

// New returns a differ for the snapshots, whose instances are kept in layers.
func New(snapshots Binder, layers *layerstore.Store, source Source) *Differ {
	return &Differ{snapshots: snapshots, layers: layers, source: source}
}

// Apply converts the layer and binds it to the active snapshot behind the mounts. The returned descriptor is that of the
// uncompressed tar stream, which containerd compares with the image's configuration.
//
// The SyncFs option asks for nothing more: instances are on stable storage before they are visible, or a power cut costs a conversion
// (layerstore.Options.SyncAfter).
func (d *Differ) Apply(ctx context.Context, layer ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	var config diff.ApplyConfig
	for _, opt := range opts {
		if err := opt(ctx, layer, &config); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("apply layer %s: %w", layer.Digest, err)
		}
	}
	snapshot, ok := d.snapshots.ActiveSnapshot(ctx, mounts)
	if !ok {
		return ocispec.Descriptor{}, fmt.Errorf("apply layer %s: the mounts are not of this snapshotter: %w", layer.Digest, errdefs.ErrNotImplemented)
	}
	if !layerstore.Importable(layer.MediaType) {
		return ocispec.Descriptor{}, fmt.Errorf("apply layer %s: media type %q: %w", layer.Digest, layer.MediaType, errdefs.ErrNotImplemented)
	}
	report := config.Progress
	if report == nil {
		report = func(int64) {}
	}
	report(0)
	instance, err := d.importAndBind(ctx, snapshot, layer)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("apply layer %s: %w", layer.Digest, classify(err))
	}
	report(layer.Size)
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: instance.DiffID, Size: instance.DiffBytes}, nil
}

// Compare is left to containerd's walking differ.
func (d *Differ) Compare(context.Context, []mount.Mount, []mount.Mount, ...diff.Opt) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{}, fmt.Errorf("compare: %w", errdefs.ErrNotImplemented)
}

func (d *Differ) importAndBind(ctx context.Context, snapshot string, layer ocispec.Descriptor) (layerstore.Instance, error) {
	if err := layer.Digest.Validate(); err != nil {
		return layerstore.Instance{}, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return layerstore.Instance{}, err
	}
	// The conversion may outlive this request, when others wait for it too: its context is not ours.
	open := func(ctx context.Context) (io.ReadCloser, error) {
		return d.source.Open(namespaces.WithNamespace(ctx, namespace), layer)
	}
	lookCtx, stop := context.WithCancel(ctx)
	var looking sync.WaitGroup
	var above []ocispec.Descriptor
	looking.Go(func() { above = d.importAbove(lookCtx, namespace, layer.Digest) })
	instance, pin, err := d.layers.Import(ctx, layer.Digest, open)
	stop()
	looking.Wait()
	if err != nil {
		for _, l := range above { // begun now, or while a layer below was applied: this pull will not ask for them
			d.layers.AbandonAhead(l.Digest)
		}
		return layerstore.Instance{}, err
	}
	// The pin keeps the instance from the collection until the snapshot's record names it.
	defer pin.Release()
	if err := d.snapshots.Bind(ctx, snapshot, instance.ID, layer); err != nil {
		return layerstore.Instance{}, fmt.Errorf("bind to snapshot %s: %w", snapshot, err)
	}
	return instance, nil
}

// classify gives the converter's errors a class that containerd passes on. Others have theirs already.
func classify(err error) error {
	var entry *converter.EntryError
	switch {
	case errors.Is(err, converter.ErrLimit):
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return layerstore.Full(err)
	case errors.Is(err, unix.EIO): // of the disk: the layer may be good
		return err
	case errors.As(err, &entry):
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}
