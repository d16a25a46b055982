package imagemount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount/image"
	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount/source"
	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount/target"
)

// Request is one mount.
type Request struct {
	// Image is what to mount, opened with Source, whose Scratch is set here.
	Image  source.Name
	Source source.Options
	// Target is the directory, see package target.
	Target string
	// Platform is the one to choose of an image for several.
	Platform ocispec.Platform
	// Writable mounts with a writable layer of its own. Otherwise the mount is read-only.
	Writable bool
	// AllowSetID and AllowDevices let set-id programs and device nodes of the image take effect.
	AllowSetID, AllowDevices bool
	// Progress is told how layers are fetched. Required.
	Progress Progress
}

// Result is what was mounted.
type Result struct {
	// Target is the absolute path of the mount, Manifest the digest of what is mounted there.
	Target, Manifest string
	// Layers is how many the image has, Fetched how many blobs of them were not there.
	Layers, Fetched int
	// DiskBytes is what all its layers take on disk, those shared with other mounts included.
	DiskBytes int64
	// BroughtBack says that it is a writable mount from before, with its changes.
	BroughtBack bool
}

// Mount mounts an image. After an error nothing is mounted, and a directory that was made for it is gone.
func (r *Root) Mount(ctx context.Context, req Request) (_ Result, err error) {
	path, err := target.Clean(req.Target)
	if err != nil {
		return Result{}, err
	}
	m, found, err := r.find(ctx, path)
	if err != nil {
		return Result{}, err
	}
	if found {
		if err := r.mayBringBack(m, req); err != nil {
			return Result{}, err
		}
	}
	dir, err := target.Prepare(path)
	if err != nil {
		return Result{}, err
	}
	defer func() {
		if err != nil {
			dir.Abandon()
		} else {
			dir.Close()
		}
	}()
	if found {
		return r.bringBack(ctx, m, req, dir)
	}
	return r.mountNew(ctx, path, req, dir)
}

// mountNew fetches what is missing of an image and mounts it.
func (r *Root) mountNew(ctx context.Context, path string, req Request, dir *target.Dir) (Result, error) {
	img, top, fetched, err := r.fetch(ctx, req)
	if err != nil {
		return Result{}, fmt.Errorf("image %s: %w", req.Image, err)
	}
	res := Result{Target: path, Manifest: img.Manifest.String(), Layers: len(img.Layers), Fetched: fetched}
	if res.DiskBytes, err = r.diskBytes(ctx, top); err != nil {
		return Result{}, err
	}
	m := Record{Target: path, Image: req.Image.String(), Manifest: res.Manifest, Writable: req.Writable}
	create := r.sn.View
	if m.Writable {
		create = r.sn.Prepare
	}
	key := mountPrefix + path
	mounts, err := create(ctx, key, top, snapshots.WithLabels(m.labels()))
	if err != nil {
		return Result{}, err
	}
	r.log.Debug("mount recorded", "target", path)
	if err := r.attach(ctx, m, mounts, req, dir); err != nil {
		return Result{}, errors.Join(err, r.sn.Remove(context.WithoutCancel(ctx), key))
	}
	return res, nil
}

// fetch makes the snapshots of the image that a request names.
func (r *Root) fetch(ctx context.Context, req Request) (img image.Image, top string, fetched int, err error) {
	opts := req.Source
	opts.Scratch = r.path
	src, err := source.Open(ctx, req.Image, opts)
	if err != nil {
		return img, "", 0, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	if img, err = image.Resolve(ctx, src, req.Platform); err != nil {
		return img, "", 0, err
	}
	r.log.Debug("image resolved", "image", req.Image, "manifest", img.Manifest, "platform", img.Platform, "layers", len(img.Layers))
	reference := ""
	if req.Image.Kind == source.InRegistry {
		reference = req.Image.Reference
	}
	top, fetched, err = r.provide(ctx, img, reference, src, req.Progress)
	return img, top, fetched, err
}

// mayBringBack says whether a request asks for the mount that was on its target before. Open has removed the records of vanished mounts
// without changes, so this one is there, or has changes, or is out of sight.
func (r *Root) mayBringBack(m Record, req Request) error {
	gone, err := r.vanished(m)
	if err != nil {
		return err
	}
	discard := fmt.Sprintf("`erofs-snapshotter unmount --discard %s` gives the changes up; they are in %s", m.Target, m.upper)
	switch {
	case !gone && m.at.namespace != r.here.namespace:
		return fmt.Errorf("%s has a mount of %s, made in another mount namespace (%s)\n  unmount it there", m.Target, m.Image, m.at.namespace)
	case !gone:
		return fmt.Errorf("%s has a mount of %s already\n  `erofs-snapshotter unmount %s` takes it away", m.Target, m.Image, m.Target)
	case !req.Writable:
		return fmt.Errorf("%s had a writable mount of %s, whose changes are kept\n  mount it with --rw to bring it back; %s", m.Target, m.Image, discard)
	case req.Image.String() != m.Image:
		return fmt.Errorf("%s had a writable mount of another image, %s, whose changes are kept\n  mount that one to bring it back; %s",
			m.Target, m.Image, discard)
	}
	// Two overlays with one upper directory damage it.
	used, err := fsbackend.Users([]string{m.upper})
	if err == nil && used[m.upper] {
		err = fmt.Errorf("%s: the writable mount of %s is gone here, but still lives in another mount namespace or under another name\n"+
			"  `grep -l %s /proc/*/mountinfo` shows the processes that see it", m.Target, m.Image, m.upper)
	}
	return err
}

// bringBack mounts a writable mount once more that had vanished, with its changes, on the layers it was made on. Its image is not asked for.
func (r *Root) bringBack(ctx context.Context, m Record, req Request, dir *target.Dir) (Result, error) {
	key := mountPrefix + m.Target
	info, err := r.sn.Stat(ctx, key)
	if err != nil {
		return Result{}, err
	}
	bytes, err := r.diskBytes(ctx, info.Parent)
	if err != nil {
		return Result{}, fmt.Errorf("layers of the writable mount %s: %w\n  mount %s on another directory to fetch them again, then this one",
			m.Target, err, m.Image)
	}
	mounts, err := r.sn.Mounts(ctx, key)
	if err != nil {
		return Result{}, err
	}
	if err := r.attach(ctx, m, mounts, req, dir); err != nil {
		return Result{}, err
	}
	return Result{Target: m.Target, Manifest: m.Manifest, DiskBytes: bytes, BroughtBack: true}, nil
}

// attach completes the record of a mount and puts the mount on its target.
func (r *Root) attach(ctx context.Context, m Record, mounts []mount.Mount, req Request, dir *target.Dir) error {
	tree, err := r.mountAside(mounts, attributes(req))
	if err != nil {
		return err
	}
	defer tree.Close()
	m.at = r.here
	if m.mount, err = tree.ID(); err != nil {
		return err
	}
	if m.Writable && m.upper == "" {
		m.upper = upperOf(mounts)
		if m.root, err = rootState(m.upper); err != nil {
			return err
		}
	}
	if _, err := r.sn.Update(ctx, snapshots.Info{Name: mountPrefix + m.Target, Labels: m.labels()}, "labels"); err != nil {
		return err
	}
	r.log.Debug("mount record completed", "target", m.Target, "mount", m.mount)
	if err := dir.Attach(tree); err != nil {
		return err
	}
	r.log.Debug("mount attached", "target", m.Target)
	return nil
}

func attributes(req Request) target.Attr {
	var attr target.Attr
	if !req.Writable {
		attr |= unix.MOUNT_ATTR_RDONLY
	}
	if !req.AllowSetID {
		attr |= unix.MOUNT_ATTR_NOSUID
	}
	if !req.AllowDevices {
		attr |= unix.MOUNT_ATTR_NODEV
	}
	return attr
}

// mountAside mounts what the snapshotter returned, attached nowhere. An overlay is mounted in our own directory first, where nobody
// else can be, by mount(2): it takes the names of hundreds of layers on every kernel, as the new calls do since Linux 6.8.
func (r *Root) mountAside(mounts []mount.Mount, attr target.Attr) (*target.Mount, error) {
	if len(mounts) == 1 && mounts[0].Type == "bind" {
		return target.Clone(mounts[0].Source, attr)
	}
	aside := r.asideDir()
	if err := os.MkdirAll(aside, 0o700); err != nil {
		return nil, err
	}
	if err := mount.All(mounts, aside); err != nil {
		return nil, fmt.Errorf("mount layers: %w", err)
	}
	r.log.Debug("mounted aside", "path", aside)
	tree, err := target.Clone(aside, attr)
	if uerr := fsbackend.Unmount(aside); uerr != nil {
		if err == nil {
			tree.Close()
		}
		return nil, errors.Join(err, uerr)
	}
	return tree, err
}

// upperOf returns the directory that writable mounts write to.
func upperOf(mounts []mount.Mount) string {
	for _, o := range mounts[0].Options {
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			return dir
		}
	}
	return mounts[0].Source
}
