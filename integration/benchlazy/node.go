package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/image-spec/identity"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// changeTimeout bounds what the daemon does in the background.
const changeTimeout = 5 * time.Minute

// withRegistry makes layouts and calls use with a registry that has them, in memory.
func (b *bench) withRegistry(ctx context.Context, layouts []layout, use func(registry *lab.Lab) error) (err error) {
	for _, l := range layouts {
		if err := l.make(ctx); err != nil {
			return err
		}
	}
	registry, err := lab.Start(ctx, lab.Options{Dir: b.work.Memory(), NoDaemon: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, registry.Close()) }()
	if err := registry.StopContainerd(); err != nil { // every measurement has its own
		return err
	}
	for _, l := range layouts {
		if err := registry.Push(ctx, l.path(), registry.Ref(l.image())); err != nil {
			return err
		}
	}
	return use(registry)
}

// node is a containerd with our daemon on a disk of its own.
type node struct {
	*lab.Lab
	registry *lab.Lab
	views    int
}

// withNode calls use with a new node. The configuration is that of the daemon.
func (b *bench) withNode(ctx context.Context, registry *lab.Lab, config string, use func(n *node) error) error {
	return b.work.WithFreshDisk(ctx, func(dir string) (err error) {
		l, err := lab.Start(ctx, lab.Options{Dir: dir, DaemonConfig: config, Announce: lab.AnnounceTransfer})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, l.Close()) }()
		return use(&node{Lab: l, registry: registry})
	})
}

func (n *node) pull(ctx context.Context, l layout) error {
	_, err := n.Ctr(ctx, "image", "pull", "--plain-http", "--snapshotter", lab.Snapshotter, n.registry.Ref(l.image()))
	return err
}

// view mounts an image that was pulled, read-only, until the node's lab is closed.
func (n *node) view(ctx context.Context, l layout) (dir string, err error) {
	ctx = n.Context(ctx)
	image, err := n.Client().GetImage(ctx, n.registry.Ref(l.image()))
	if err != nil {
		return "", err
	}
	diffIDs, err := image.RootFS(ctx)
	if err != nil {
		return "", err
	}
	n.views++
	key := fmt.Sprintf("view%d", n.views)
	keep := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": time.Now().Format(time.RFC3339)})
	mounts, err := n.Client().SnapshotService(lab.Snapshotter).View(ctx, key, identity.ChainID(diffIDs).String(), keep)
	if err != nil {
		return "", err
	}
	dir = filepath.Join(n.Dir, "views", key)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return dir, mount.All(mounts, dir)
}

// layerStatus is what is read of the daemon's answer.
type layerStatus struct {
	Digest, State string
	Mounted       bool
	Lazy          *struct {
		Bytes, PresentBytes int64
		Verified            string
	}
}

// States of layers.
const (
	partial  = "partial"
	complete = "complete"
)

func (n *node) status(ctx context.Context) ([]layerStatus, error) {
	var status struct{ Layers []layerStatus }
	err := n.Status(ctx, &status)
	return status.Layers, err
}

// lazyLayers are those that were loaded on demand, and may be complete now.
func (n *node) lazyLayers(ctx context.Context) ([]layerStatus, error) {
	all, err := n.status(ctx)
	var found []layerStatus
	for _, l := range all {
		if l.Lazy != nil {
			found = append(found, l)
		}
	}
	return found, err
}

// wait waits until the node has so many lazy layers, all in a state, and checked if they are complete: nothing is done for them any more.
func (n *node) wait(ctx context.Context, count int, state string) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	for {
		layers, err := n.lazyLayers(ctx)
		in := 0
		for _, l := range layers {
			if l.State == state && (state != complete || l.Lazy.Verified == "yes") {
				in++
			}
		}
		if err == nil && in == count {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(err, fmt.Errorf("%d of %d lazy layers are %s, want %d: %w", in, len(layers), state, count, ctx.Err()))
		}
	}
}

// waitKeeper waits until the keeper is in a state.
func (n *node) waitKeeper(ctx context.Context, state keeper.State) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	for {
		r, err := keeper.Status(ctx, n.KeeperAddress())
		if err == nil && r.State == state {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(err, fmt.Errorf("the keeper is in state %q, want %q: %w", r.State, state, ctx.Err()))
		}
	}
}
