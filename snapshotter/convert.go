package snapshotter

import (
	"context"
	"fmt"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// retryConversion is how long a directory is left alone after its conversion failed. Most reasons stay (an upper directory
// with redirects), but a full disk does not.
const retryConversion = 10 * time.Minute

// convertDirectories converts the directory instances of committed snapshots, one after the other, until ctx ends.
func (s *Snapshotter) convertDirectories(ctx context.Context) {
	failed := map[layerstore.ID]time.Time{}
	for ctx.Err() == nil {
		id, ok, err := s.nextDirectory(ctx, failed)
		if err != nil {
			s.log.Warn("directory instances not listed", "cause", err)
		}
		if !ok {
			select {
			case <-ctx.Done():
			case <-s.wakeConvert:
			case <-time.After(retryConversion):
			}
			continue
		}
		if err := s.convert(ctx, id); err != nil && ctx.Err() == nil {
			s.log.Warn("directory instance not converted; it is used as it is", "instance", id, "cause", err, "retry", retryConversion)
			failed[id] = time.Now()
		}
	}
}

// nextDirectory returns the oldest directory instance that a committed snapshot consists of and that did not fail of late.
func (s *Snapshotter) nextDirectory(ctx context.Context, failed map[layerstore.ID]time.Time) (id layerstore.ID, ok bool, err error) {
	var oldest time.Time
	err = s.view(ctx, func(_ context.Context, r *records) error {
		for _, inst := range s.layers.List() {
			if inst.Kind != layerstore.Directory || time.Since(failed[inst.ID]) < retryConversion || len(r.committed(inst.ID)) == 0 {
				continue
			}
			if !ok || inst.Created.Before(oldest) {
				id, ok, oldest = inst.ID, true, inst.Created
			}
		}
		return nil
	})
	return id, ok, err
}

// convert makes an EROFS instance of a directory instance, and lets the committed snapshots that consist of the directory
// consist of it. Frozen lowers go on naming the directory.
func (s *Snapshotter) convert(ctx context.Context, dir layerstore.ID) error {
	start := time.Now()
	inst, pin, err := s.layers.ConvertDir(ctx, dir)
	if err != nil {
		return err
	}
	defer pin.Release()
	step.Reached("convert/made")
	var moved []uint64
	err = s.update(ctx, func(_ context.Context, r *records) error {
		moved = r.committed(dir)
		for _, snapshot := range moved {
			if err := r.put(snapshot, record{Instance: inst.ID}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("replace directory instance %s by %s: %w", dir, inst.ID, err)
	}
	step.Reached("convert/replaced")
	s.log.Info("directory instance converted", "instance", inst.ID, "from", dir, "snapshots", moved, "bytes", inst.DiskBytes, "took", time.Since(start))
	wake(s.wakeCollect)
	return nil
}
