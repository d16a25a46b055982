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

// make builds an EROFS instance in its place. On an error nothing of it is left.
func (s *Store) make(ctx context.Context, id ID, fill fill) (_ Instance, err error) {
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
	inst, err := writeImage(ctx, work, id, fill)
	if err != nil {
		return Instance{}, err
	}
	if err := writeRecord(work, inst); err != nil {
		return Instance{}, err
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

// writeImage makes the two files of an instance below dir, and syncs them.
func writeImage(ctx context.Context, dir string, id ID, fill fill) (_ Instance, err error) {
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
	// Both at once: together they wait for the disk, and for the filesystem's journal, once.
	var syncing sync.WaitGroup
	var allocated [2]int64
	var errs [2]error
	for i, want := range []int64{inst.MetaBytes, inst.DataBytes} {
		syncing.Go(func() { allocated[i], errs[i] = syncFile(files[i], want) })
	}
	syncing.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return Instance{}, err
	}
	inst.DiskBytes = allocated[0] + allocated[1]
	inst.ID, inst.Kind, inst.Created = id, EROFS, time.Now().UTC()
	return inst, nil
}

// syncFile syncs f, whose length must be want, and returns what it takes on disk. Only after the sync is that number final:
// filesystems with delayed allocation choose the blocks when they write.
func syncFile(f *writeBehind, want int64) (allocated int64, err error) {
	if err := f.Sync(); err != nil {
		return 0, err
	}
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if fi.Size() != want {
		return 0, fmt.Errorf("%s has %d bytes, the converter wrote %d", f.Name(), fi.Size(), want)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("%s: no file status", f.Name())
	}
	return st.Blocks * 512, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
