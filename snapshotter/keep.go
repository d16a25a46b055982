package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// Layers that no snapshot refers to are kept beyond their grace when Options.Keep allows it: when one of them is wanted again it is there, and
// nothing is fetched or converted. They are unmounted, since a mount holds on to the page cache, and the metadata does not know them; no
// snapshot is charged for them. The layers used least recently go first: for the cap, when the disk becomes full, and all of them
// when an import finds it full.

// keepFree is the part of the filesystem, 1/keepFree, that kept layers leave free. A kubelet removes images when 85 % are in use, until it is
// 80 %, and ends pods when less than 15 % are free: kept layers have to be gone before it counts on them.
const keepFree = 5

// keeping is what is kept, for status and metrics.
type keeping struct {
	bytes, evictions atomic.Int64
}

// KeptBytes is what layers that no snapshot refers to take on disk beyond their grace, as the last collection found them.
func (s *Snapshotter) KeptBytes() int64 { return s.kept.bytes.Load() }

// Evictions is how many layers were deleted since the start that would be kept if there were more room. Zero without Options.Keep.
func (s *Snapshotter) Evictions() int64 { return s.kept.evictions.Load() }

// reusable says whether an instance can be wanted again once nobody refers to it: by the digest of its layer. One whose data are missing saves
// nothing.
func reusable(inst layerstore.Instance) bool {
	return inst.Kind == layerstore.EROFS && inst.Layer != "" && !inst.Partial()
}

// idleLayer is an instance that may be kept.
type idleLayer struct {
	id    layerstore.ID
	bytes int64 // what it takes on disk
	used  time.Time
}

// chooseKept returns which of the instances whose grace is over stay for reuse, and what each takes on disk: limit bytes at most, and as far as
// the disk has room.
func (s *Snapshotter) chooseKept(ctx context.Context, idle []layerstore.Instance, limit int64) (map[layerstore.ID]int64, error) {
	var layers []idleLayer
	var total int64
	for _, inst := range idle {
		if limit <= 0 || !reusable(inst) {
			continue
		}
		u, err := s.layers.Usage(ctx, inst.ID)
		if err != nil {
			return nil, err
		}
		layers = append(layers, idleLayer{inst.ID, u.Bytes, s.layers.LastUsed(inst.ID)})
		total += u.Bytes
	}
	if len(layers) == 0 {
		return nil, nil
	}
	missing, err := s.missingSpace()
	if err != nil {
		return nil, err
	}
	return usedLast(layers, min(limit, total-missing)), nil
}

// usedLast returns the layers used last that take no more than limit bytes together. Once one does not fit, all older ones are out; but
// one that alone is larger than the limit pushes no other out.
func usedLast(layers []idleLayer, limit int64) map[layerstore.ID]int64 {
	slices.SortFunc(layers, func(a, b idleLayer) int { return cmp.Or(b.used.Compare(a.used), cmp.Compare(a.id, b.id)) })
	kept := map[layerstore.ID]int64{}
	left := limit
	for _, l := range layers {
		if l.bytes > limit {
			continue
		}
		if l.bytes > left {
			break
		}
		kept[l.id] = l.bytes
		left -= l.bytes
	}
	return kept
}

// missingSpace is how many bytes would have to be freed until kept layers leave as much of the disk free as they should; 0 if there is enough.
func (s *Snapshotter) missingSpace() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.root, &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", s.root, err)
	}
	return max(0, int64(st.Blocks/keepFree)-int64(st.Bavail)) * st.Bsize, nil
}

// makeRoom deletes all kept layers: an import found the disk full. It reports whether there were any; while it waits, others may have
// deleted them.
func (s *Snapshotter) makeRoom(ctx context.Context) bool {
	if s.keep <= 0 {
		return false
	}
	before := s.Evictions()
	_, err := s.collectKeeping(ctx, 0)
	if err := errors.Join(err, s.layers.DeleteDiscarded()); err != nil {
		s.log.Warn("not all layers kept for reuse were deleted on a full disk", "cause", err)
	}
	return s.Evictions() > before
}
