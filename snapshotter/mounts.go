package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// stack is what a snapshot's mounts are made of.
type stack struct {
	snapshot uint64
	kind     snapshots.Kind
	lowers   []lower // top first
}

// lower is an instance and its mount number.
type lower struct {
	id layerstore.ID
	n  uint64
}

// Mounts returns how to mount an active snapshot or a view, after it has mounted what is missing of its layers. For one
// snapshot the answer is always the same, until Bind gives it a layer.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	if err := s.restore(ctx, key); err != nil {
		return nil, fmt.Errorf("mounts of snapshot %q: %w", key, err)
	}
	var st stack
	err := s.view(ctx, func(ctx context.Context, r *records) error {
		snapshot, err := storage.GetSnapshot(ctx, key)
		if err != nil {
			return err
		}
		id, err := parseSnapshotID(snapshot.ID)
		if err != nil {
			return err
		}
		rec, err := r.get(id)
		if err != nil {
			return err
		}
		st, err = s.stackOf(r, id, snapshot.Kind, rec)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %q: %w", key, err)
	}
	mounts, err := s.provide(ctx, st)
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %q: %w", key, err)
	}
	return mounts, nil
}

// stackOf resolves a record to mount numbers. A bound layer is on top: it is the content of the snapshot until Commit.
func (s *Snapshotter) stackOf(r *records, snapshot uint64, kind snapshots.Kind, rec record) (stack, error) {
	st := stack{snapshot: snapshot, kind: kind}
	ids := rec.Lowers
	if rec.Bound != "" {
		var err error
		if ids, err = s.effective(append([]layerstore.ID{rec.Bound}, ids...)); err != nil {
			return stack{}, err
		}
	}
	for _, id := range ids {
		n, ok := r.mountNumber(id)
		if !ok {
			return stack{}, fmt.Errorf("layer instance %s has no mount number", id)
		}
		st.lowers = append(st.lowers, lower{id, n})
	}
	return st, nil
}

// provide mounts the layers of a stack that are not mounted, and returns the mounts for the caller.
func (s *Snapshotter) provide(ctx context.Context, st stack) ([]mount.Mount, error) {
	for _, l := range st.lowers {
		if err := s.mountLayer(ctx, l); err != nil {
			return nil, err
		}
	}
	return s.mountsOf(st), nil
}

// mountLayer mounts an instance, unless it is mounted. The caller holds a reference to it.
func (s *Snapshotter) mountLayer(ctx context.Context, l lower) error {
	if err := s.checkDecided(l.id); err != nil {
		return fmt.Errorf("mount layer instance %s: %w", l.id, err)
	}
	target := s.mountDir(l.n)
	// The common case needs no lock: a mount that a snapshot refers to does not go away.
	if mounted, err := fsbackend.Mounted(target); err == nil && mounted {
		return nil
	}
	defer s.mounting.lock(l.n)()
	inst, err := s.layers.Get(l.id)
	if err != nil {
		return fmt.Errorf("%w\n  its files are missing or damaged: remove the image and pull it again", err)
	}
	if err := os.Mkdir(target, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if inst.Kind == layerstore.Directory {
		err = fsbackend.BindReadOnly(s.layers.DirPath(l.id), target)
	} else {
		err = s.mountImage(ctx, inst, target)
	}
	if err != nil {
		return fmt.Errorf("mount layer instance %s: %w", l.id, err)
	}
	return nil
}

// mountImage mounts an EROFS instance. One whose data are missing is mounted only with somebody who answers for them.
func (s *Snapshotter) mountImage(ctx context.Context, inst layerstore.Instance, target string) error {
	img := fsbackend.Image{Meta: s.layers.MetaPath(inst.ID), Data: s.layers.DataPath(inst.ID)}
	if inst.Partial() {
		if s.demand == nil {
			return errors.New("its data are not all here, and loading on demand is off")
		}
		answering, err := s.demand.Mount(ctx, string(inst.ID))
		if err != nil && s.isPartial(inst.ID) {
			return err
		}
		if answering != nil {
			img.OnDemand, img.Check, img.Cookies = true, answering.Check, answering.Cookies
		}
	}
	return s.backend.Mount(ctx, img, target)
}

// isPartial says whether data of an instance are missing now: they may all have come since somebody has looked.
func (s *Snapshotter) isPartial(id layerstore.ID) bool {
	inst, err := s.layers.Get(id)
	return err != nil || inst.Partial()
}

// mountsOf returns exactly one plain mount, which every version of containerd and every other client can use.
func (s *Snapshotter) mountsOf(st stack) []mount.Mount {
	active := st.kind == snapshots.KindActive
	switch {
	case len(st.lowers) == 0 && active:
		return bindMount(s.upperDir(st.snapshot), "rw")
	case len(st.lowers) == 0:
		return bindMount(s.upperDir(st.snapshot), "ro")
	case len(st.lowers) == 1 && !active:
		// overlayfs wants two lower layers where there is no upper one.
		return bindMount(s.mountDir(st.lowers[0].n), "ro")
	}
	dirs := make([]string, len(st.lowers))
	for i, l := range st.lowers {
		dirs[i] = s.mountDir(l.n)
	}
	var options []string
	if active {
		options = append(options, "workdir="+s.workDir(st.snapshot), "upperdir="+s.upperDir(st.snapshot))
	}
	options = append(options, "lowerdir="+strings.Join(dirs, ":"))
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: append(options, s.overlay...)}}
}

func bindMount(source, access string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: source, Options: []string{access, "rbind"}}}
}

// mountDir is where the instance with mount number n is mounted. Base 36 keeps the option string of 300 layers below a page.
func (s *Snapshotter) mountDir(n uint64) string {
	return filepath.Join(s.root, "m", strconv.FormatUint(n, 36))
}

// overlayOptions are those that every overlay mount of ours carries, where the kernel's module knows them.
//
// The defaults can be set for the host. With index=on a lower layer that was made anew gives ESTALE; a directory redirect or a
// metadata-only copy in an upper directory refers to the lowers, and such a directory is no layer of an image.
func overlayOptions() []string {
	const parameters = "/sys/module/overlay/parameters"
	_, err := os.Stat(parameters)
	loaded := err == nil
	var options []string
	for _, o := range []struct{ name, value string }{{"index", "off"}, {"redirect_dir", "nofollow"}, {"metacopy", "off"}} {
		_, err := os.Stat(filepath.Join(parameters, o.name))
		// A module that is not loaded yet cannot be asked. Every kernel that has EROFS as we need it has these options.
		if err == nil || !loaded {
			options = append(options, o.name+"="+o.value)
		}
	}
	return options
}
