package layerstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/internal/step"
)

// fill writes the two files of an instance and says what is known about it.
type fill func(context.Context, converter.Target) (Instance, error)

// make builds an EROFS instance in its place, on stable storage if durable. On an error nothing of it is left.
func (s *Store) make(ctx context.Context, id ID, durable bool, fill fill) (_ Instance, err error) {
	work := filepath.Join(s.dir, buildingPrefix+string(id))
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(work))
		}
	}()
	// What an earlier attempt could not delete must not stand in the way of this one, the only one for this id.
	if err := os.RemoveAll(work); err != nil {
		return Instance{}, err
	}
	if err := os.Mkdir(work, 0o700); err != nil {
		return Instance{}, err
	}
	inst, err := s.writeImage(ctx, work, id, durable, fill)
	if err != nil {
		return Instance{}, err
	}
	if err := writeRecord(filepath.Join(work, recordName), inst, durable); err != nil {
		return Instance{}, err
	}
	if !durable {
		return inst, os.Rename(work, s.path(id))
	}
	if err := syncDir(work); err != nil {
		return Instance{}, err
	}
	step.Reached("layerstore/build/written")
	if err := os.Rename(work, s.path(id)); err != nil {
		return Instance{}, err
	}
	step.Reached("layerstore/build/renamed")
	if err := syncDir(s.dir); err != nil {
		return Instance{}, errors.Join(err, os.Rename(s.path(id), work))
	}
	return inst, nil
}

// writeImage makes the two files of an instance below dir, and syncs them if durable.
func (s *Store) writeImage(ctx context.Context, dir string, id ID, durable bool, fill fill) (_ Instance, err error) {
	var files [2]*writeBehind
	for i, name := range []string{metaName, dataName} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return Instance{}, err
		}
		files[i] = newWriteBehind(f)
		defer files[i].Close()
	}
	inst, err := fill(ctx, converter.Target{ID: id.Bytes(), Meta: files[0], Data: files[1]})
	if err != nil {
		return Instance{}, err
	}
	step.Reached("layerstore/build/filled")
	inst.ID, inst.Kind, inst.Created = id, EROFS, time.Now().UTC()
	if durable {
		inst.DiskBytes, err = syncFiles(inst, files[0], files[1])
	} else {
		inst.Unsynced = s.boot
		inst.DiskBytes, err = allocatedFiles(inst, files[0], files[1])
	}
	return inst, err
}

// file is what is asked of a meta image or data blob that is written.
type file interface {
	Sync() error
	Stat() (os.FileInfo, error)
}

// syncFiles syncs the files of an instance and returns what they take on disk. Only after the sync is that number final: filesystems
// with delayed allocation choose the blocks when they write. Both are synced at once, so that together they wait for the disk, and for
// the filesystem's journal, once.
func syncFiles(inst Instance, meta, data file) (allocated int64, err error) {
	var syncing sync.WaitGroup
	var dataErr error
	syncing.Go(func() { dataErr = data.Sync() })
	err = meta.Sync()
	syncing.Wait()
	if err := errors.Join(err, dataErr); err != nil {
		return 0, err
	}
	return allocatedFiles(inst, meta, data)
}

// allocatedFiles returns what the files of an instance take on disk, after it has checked their lengths.
func allocatedFiles(inst Instance, meta, data file) (allocated int64, err error) {
	for f, want := range map[file]int64{meta: inst.MetaBytes, data: inst.DataBytes} {
		fi, err := f.Stat()
		if err != nil {
			return 0, err
		}
		if fi.Size() != want {
			return 0, fmt.Errorf("%s has %d bytes, the converter wrote %d", fi.Name(), fi.Size(), want)
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return 0, fmt.Errorf("%s: no file status", fi.Name())
		}
		allocated += st.Blocks * 512
	}
	return allocated, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
