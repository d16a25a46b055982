// Package imagemount mounts images on directories without containerd: an image is fetched, converted to EROFS, mounted, and then needs
// no process of ours until it is unmounted. Layers that are loaded on demand are mounted before their data are here; while data are missing,
// they need one.
//
// It is a small client of package snapshotter with a root directory of its own. What it keeps there are snapshots:
//
//	<chain ID>        committed: one layer on those below it. Images that share layers share these.
//	import <chain>    active, while a layer is committed; one that is found was left by a crash
//	mount <target>    a view, or for a writable mount an active snapshot, whose labels are the record of a mount, see record
//
// Every command opens the Root, does one thing, and closes it; flock on the root directory keeps commands apart. Open repairs what a
// killed command, a reboot or `umount` left, and Close removes what no mount needs: after the last one, the root has empty directories and
// metadata.db.
//
// # What a crash leaves
//
//	mount     The record is written first, and completed with the number of the mount before that is attached. So a mount of ours always
//	          has a record, and a record without a mount is removed by the next command.
//	unmount   The mount goes first, then the record, then the layers. Each step can be repeated.
//	fetching  Layers that are not complete are deleted by the layer store, complete ones because no mount needs them. A compressed archive
//	          is decompressed into a file without a name.
//
// # What is never deleted unasked
//
// Changes in a writable mount. Its record outlives its mount for as long as its upper directory has changes; the same image mounted on
// the same directory brings it back, and only Unmount with Discard ends it.
//
// # Trust
//
// A layer is committed under a chain ID after its blob had the digest of the manifest and its tar the diffID of the config; one that is loaded
// on demand when its index had the digest of the manifest, see package lazy.
package imagemount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/lazy"
)

// Options of a Root.
type Options struct {
	// Path is the root directory, which is made with mode 0700. Required. It must not be that of the daemon.
	Path string
	// Backend mounts EROFS instances. Required.
	Backend fsbackend.Backend
	// Wait is how long Open waits for another command. Waiting is called once if it has to, unless it is nil.
	Wait    time.Duration
	Waiting func()
	// Locked is called when the root belongs to this process, before anything in it is touched, unless it is nil. Closing is called when nothing
	// in it is used any more, before it is given back: by Close, and by Open if that fails in Locked or later.
	Locked  func(context.Context) error
	Closing func(context.Context) error
	// Log gets what was repaired, and at level debug each step. Nil discards it.
	Log *slog.Logger
	// Layers are the options of the layer store.
	Layers layerstore.Options
	// Lazy makes layers of images in registries that are loaded on demand, for which OnDemand answers. Nil: all layers are fetched as a whole.
	// Who sets them sees to it that somebody goes on answering after Close.
	Lazy     *lazy.Loader
	OnDemand snapshotter.OnDemand
}

// Root is the root directory, open for one command. Its methods are not for concurrent use.
type Root struct {
	path string
	lock *os.File
	sn   *snapshotter.Snapshotter
	lazy *lazy.Loader
	end  func(context.Context) error
	log  *slog.Logger
	here place
}

// Prefixes of the keys of snapshots. A chain ID begins with "sha256:".
const (
	importPrefix = "import "
	mountPrefix  = "mount "
)

// Open takes the root directory for this process and repairs it.
func Open(ctx context.Context, opts Options) (_ *Root, err error) {
	r := &Root{log: opts.Log}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.path, err = filepath.Abs(opts.Path); err != nil {
		return nil, err
	}
	if r.here, err = hereAndNow(); err != nil {
		return nil, err
	}
	if err := refuseDaemonRoot(r.path); err != nil {
		return nil, err
	}
	if r.lock, err = lockRoot(ctx, r.path, opts.Wait, opts.Waiting); err != nil {
		return nil, err
	}
	r.lazy, r.end = opts.Lazy, opts.Closing
	defer func() {
		if err != nil {
			err = errors.Join(err, r.giveBack(ctx))
		}
	}()
	if opts.Locked != nil {
		if err := opts.Locked(ctx); err != nil {
			return nil, err
		}
	}
	// The zero grace is a default; here nothing is kept for later.
	r.sn, err = snapshotter.New(ctx, snapshotter.Options{
		Root: r.path, Backend: opts.Backend, Log: r.log, Grace: -1, Brief: true, Layers: opts.Layers, Lazy: opts.Lazy, OnDemand: opts.OnDemand,
	})
	if err != nil {
		return nil, err
	}
	if err := r.settle(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("repair %s: %w", r.path, err), r.sn.Close())
	}
	return r, nil
}

// giveBack lets others have the root directory, in which nothing is used any more.
func (r *Root) giveBack(ctx context.Context) error {
	var err error
	if r.end != nil {
		err = r.end(context.WithoutCancel(ctx))
	}
	return errors.Join(err, r.lock.Close())
}

// refuseDaemonRoot keeps us from a root whose snapshots containerd knows: all would be garbage here.
func refuseDaemonRoot(path string) error {
	_, err := os.Lstat(filepath.Join(path, "daemon.lock"))
	if err == nil {
		return fmt.Errorf("root %s belongs to the daemon\n  give another directory with --root", path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("root: %w", err)
}

// Snapshotter is what the root consists of.
func (r *Root) Snapshotter() *snapshotter.Snapshotter { return r.sn }

// Close removes what no mount needs, also when ctx has ended, and gives the root directory back. Mounts stay.
func (r *Root) Close(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	err := errors.Join(
		r.sn.Layers().Close(), // imports that were given up must not finish after the sweep
		r.sweep(ctx),
		r.sn.Cleanup(ctx),
		r.sn.Close(),
	)
	if r.end != nil {
		err = errors.Join(err, r.end(ctx))
	}
	if err != nil {
		err = fmt.Errorf("root %s: %w\n  the next command tries again", r.path, err)
	}
	return errors.Join(err, r.lock.Close())
}

// asideDir is where overlays are mounted before they go to their target.
func (r *Root) asideDir() string { return filepath.Join(r.path, "aside") }

// settle brings records and mounts together: after a crash, a reboot, or a plain umount.
func (r *Root) settle(ctx context.Context) error {
	if err := fsbackend.Unmount(r.asideDir()); err != nil {
		return err
	}
	all, err := r.mounts(ctx)
	if err != nil {
		return err
	}
	for _, m := range all {
		gone, err := r.vanished(m)
		if err != nil {
			return err
		}
		if !gone {
			continue
		}
		changed, err := m.changed()
		if err != nil {
			return err
		}
		if changed {
			continue
		}
		r.log.Info("a mount that is not there any more: removed", "target", m.Target, "image", m.Image)
		if err := r.sn.Remove(ctx, mountPrefix+m.Target); err != nil {
			return err
		}
	}
	return r.sweep(ctx)
}

// sweep removes the snapshots that no mount lies on. Files go with Cleanup.
func (r *Root) sweep(ctx context.Context) error {
	parents := map[string]string{}
	children := map[string]int{}
	var loose []string // without children, and no mount
	err := r.sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		parents[info.Name] = info.Parent
		children[info.Parent]++
		return nil
	})
	if err != nil {
		return err
	}
	for name := range parents {
		if children[name] == 0 && !strings.HasPrefix(name, mountPrefix) {
			loose = append(loose, name)
		}
	}
	for len(loose) > 0 {
		name := loose[len(loose)-1]
		loose = loose[:len(loose)-1]
		if err := r.sn.Remove(ctx, name); err != nil {
			return err
		}
		r.log.Debug("snapshot removed", "snapshot", name)
		parent := parents[name]
		if children[parent]--; children[parent] == 0 && parent != "" {
			loose = append(loose, parent)
		}
	}
	return nil
}
