package layerstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
)

// Renew gives a partial instance new files, with what is certain of its data, and makes an orphan of the old ones, whose directory it returns:
// nobody has answered for them, so a mount of them may have shown zeros. It needs no network. If new files cannot be made, because the old ones
// are damaged or the disk is full, the instance leaves the store, and its snapshots have it made again.
func (s *Store) Renew(ctx context.Context, id ID) (orphan string, err error) {
	inst, err := s.Get(id)
	if err != nil {
		return "", err
	}
	orphan = filepath.Join(s.orphans, string(randomID()[:16]))
	err = s.inWork(ctx, id, func(work string) error {
		if err := renewFiles(ctx, s.path(id), work, id); err != nil {
			return err
		}
		if err := writeRecord(filepath.Join(work, recordName), inst, true); err != nil {
			return err
		}
		if err := syncDir(work); err != nil {
			return err
		}
		return s.exchange(inst, work, orphan)
	})
	if err != nil && ctx.Err() == nil {
		s.log.Error("data of a lazy layer are not kept: it is made again when it is needed", "instance", id, "layer", inst.Layer, "cause", err)
		err = s.orphan(inst, orphan)
	}
	if err != nil {
		return "", fmt.Errorf("renew layer instance %s: %w", id, err)
	}
	return orphan, nil
}

// exchange makes an orphan of the files of an instance, and puts those in the directory work in their place.
func (s *Store) exchange(inst Instance, work, orphan string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Rename(s.path(inst.ID), orphan); err != nil {
		return err
	}
	step.Reached("layerstore/renew/orphaned")
	if err := os.Rename(work, s.path(inst.ID)); err != nil {
		return errors.Join(err, os.Rename(orphan, s.path(inst.ID)))
	}
	return errors.Join(syncDir(s.dir), syncDir(s.orphans))
}

// orphan takes an instance out of the store.
func (s *Store) orphan(inst Instance, to string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Rename(s.path(inst.ID), to); err != nil {
		return err
	}
	delete(s.instances, inst.ID)
	return nil
}

// renewFiles makes a meta image and a data blob in the directory to of those in from.
func renewFiles(ctx context.Context, from, to string, id ID) (err error) {
	if err := copyFile(filepath.Join(from, metaName), filepath.Join(to, metaName)); err != nil {
		return err
	}
	old, err := blob.Open(from, id.Bytes(), blob.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, old.Close()) }()
	if err := createFrom(old, to, id); err != nil {
		return err
	}
	fresh, err := blob.Open(to, id.Bytes(), blob.Options{})
	if err != nil {
		return err
	}
	return errors.Join(copyExtents(ctx, old, fresh), fresh.Close())
}

// renewBatch is how many entries of an extent table are read at a time.
const renewBatch = 1024

// createFrom makes an empty blob with the extents of another.
func createFrom(old *blob.Blob, to string, id ID) error {
	var failed error
	err := blob.Create(to, id.Bytes(), old.Size(), func(yield func(blob.Extent) bool) {
		failed = eachExtent(old, func(_ int, x blob.Extent) error {
			if !yield(x) {
				return io.EOF
			}
			return nil
		})
	})
	if errors.Is(failed, io.EOF) {
		failed = nil
	}
	return errors.Join(failed, err)
}

func eachExtent(b *blob.Blob, do func(int, blob.Extent) error) error {
	for first := 0; first < b.Count(); first += renewBatch {
		extents, err := b.Extents(first, min(first+renewBatch, b.Count()))
		if err != nil {
			return err
		}
		for i, x := range extents {
			if err := do(first+i, x); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyExtents copies the extents that are recorded and have the right bytes.
func copyExtents(ctx context.Context, old, fresh *blob.Blob) error {
	var buffer []byte
	return eachExtent(old, func(i int, x blob.Extent) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !old.Present(i) {
			return nil
		}
		if int(x.Length) > len(buffer) {
			buffer = make([]byte, x.Length)
		}
		b := buffer[:x.Length]
		if _, err := old.File().ReadAt(b, x.Offset); err != nil || sha256.Sum256(b) != x.Digest {
			return nil // fetched again
		}
		return fresh.Write(i, b)
	})
}

// copyFile copies a file to a new one and syncs that.
func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Sync()
}
