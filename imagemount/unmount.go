package imagemount

import (
	"context"
	"fmt"
	"strings"

	"github.com/erofs-snapshotter/erofs-snapshotter/imagemount/target"
)

// Unmount takes the mount away that Mount put on a directory, or cleans up after one that is not there any more. The directory stays. Changes
// in a writable mount are given up if discard says so; otherwise they are an error.
func (r *Root) Unmount(ctx context.Context, dir string, discard bool) (Record, error) {
	path, err := target.Clean(dir)
	if err != nil {
		return Record{}, err
	}
	m, found, err := r.find(ctx, path)
	if err != nil {
		return Record{}, err
	}
	if !found {
		return Record{}, r.unknown(ctx, path)
	}
	if err := m.mayGo(discard); err != nil {
		return Record{}, err
	}
	if err := r.detach(m); err != nil {
		return Record{}, err
	}
	r.log.Debug("unmounted", "target", m.Target)
	// Until it was unmounted, somebody could write.
	if err := m.mayGo(discard); err != nil {
		return Record{}, err
	}
	if err := r.sn.Remove(ctx, mountPrefix+m.Target); err != nil {
		return Record{}, err
	}
	r.log.Debug("mount record removed", "target", m.Target)
	return m, nil
}

// mayGo refuses to lose changes.
func (m Record) mayGo(discard bool) error {
	if discard {
		return nil
	}
	changed, err := m.changed()
	if err != nil {
		return fmt.Errorf("look for changes in %s: %w", m.Target, err)
	}
	if changed {
		return fmt.Errorf("the writable mount %s has changes, which would be lost\n"+
			"  they are in %s: copy what you need, then unmount with --discard", m.Target, m.upper)
	}
	return nil
}

// detach unmounts what a record says is mounted, if it is.
func (r *Root) detach(m Record) error {
	if m.at != r.here {
		return nil // the mount went with its boot, or lives in another namespace, where its user unmounts it
	}
	id, mounted, err := target.Mounted(m.Target)
	if err != nil || !mounted {
		return err
	}
	if id != m.mount {
		return fmt.Errorf("something else is mounted on %s, over the mount of %s or in its place (mount %d, ours was %d)\n"+
			"  take that away first: umount %s", m.Target, m.Image, id, m.mount, m.Target)
	}
	return target.Unmount(m.Target)
}

// unknown is the error for a directory that has no mount of ours.
func (r *Root) unknown(ctx context.Context, path string) error {
	all, err := r.mounts(ctx)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return fmt.Errorf("nothing is mounted on %s, and there are no other mounts in root %s", path, r.path)
	}
	var lines []string
	for _, m := range all {
		lines = append(lines, m.Target+" ("+m.Image+")")
	}
	return fmt.Errorf("nothing of root %s is mounted on %s\n  there is: %s", r.path, path, strings.Join(lines, ", "))
}

// Unfinished returns the writable mounts that are not mounted any more and whose changes are kept.
func (r *Root) Unfinished(ctx context.Context) ([]Record, error) {
	all, err := r.mounts(ctx)
	if err != nil {
		return nil, err
	}
	var kept []Record
	for _, m := range all {
		gone, err := r.vanished(m)
		if err != nil {
			return nil, err
		}
		if gone {
			kept = append(kept, m)
		}
	}
	return kept, nil
}
