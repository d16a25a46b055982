package snapshotter

import (
	"bytes"
	"context"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// LayerUse is an instance and its use.
type LayerUse struct {
	layerstore.Instance
	// References is how many snapshots refer to it.
	References int
	Mounted    bool
}

// LayerUses returns all instances, ordered by id.
func (s *Snapshotter) LayerUses(ctx context.Context) ([]LayerUse, error) {
	var all []LayerUse
	err := s.view(ctx, func(_ context.Context, r *records) error {
		for _, inst := range s.layers.List() {
			use := LayerUse{Instance: inst, References: r.countReferences(inst.ID)}
			if n, ok := r.mountNumber(inst.ID); ok {
				// One that cannot be asked, because it is just going, counts as not mounted.
				mounted, err := fsbackend.Mounted(s.mountDir(n))
				use.Mounted = err == nil && mounted
			}
			all = append(all, use)
		}
		return nil
	})
	return all, err
}

func (r *records) countReferences(id layerstore.ID) int {
	prefix, n := instanceKey(id), 0
	c := r.refs.Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		n++
	}
	return n
}
