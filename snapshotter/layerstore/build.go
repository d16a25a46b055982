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

// make builds an EROFS instance in its place, on stable storage. On an error nothing of it is left.
func (s *Store) make(ctx context.Context, id ID, fill fill) (Instance, error) {
	var inst Instance
	err := s.inWork(ctx, id, func(work string) error {
		files, err := createFiles(work)
		if err != nil {
			return err
		}
		defer files.close()
		if inst, err = files.write(ctx, id, fill); err != nil {
			return err
		}
		if inst.DiskBytes, err = files.sync(inst); err != nil {
			return err
		}
		return s.putInPlace(work, inst)
	})
	if err != nil {
		return Instance{}, err
	}
	return inst, nil
}

// makeUnsynced builds an EROFS instance in its place and returns its files, for settle. On an error nothing of it is left.
func (s *Store) makeUnsynced(ctx context.Context, id ID, fill fill) (Instance, *imageFiles, error) {
	var inst Instance
	var files *imageFiles
	err := s.inWork(ctx, id, func(work string) (err error) {
		if files, err = createFiles(work); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				files.close()
			}
		}()
		if inst, err = files.write(ctx, id, fill); err != nil {
			return err
		}
		inst.Unsynced = true
		if inst.DiskBytes, err = files.allocated(inst); err != nil {
			return err
		}
		if err := writeRecord(filepath.Join(work, recordName), inst, false); err != nil {
			return err
		}
		return os.Rename(work, s.path(id))
	})
	if err != nil {
		return Instance{}, nil, err
	}
	return inst, files, nil
}

// inWork calls do with a directory for the instance id, which is removed when do fails. On a full disk it may call do twice.
func (s *Store) inWork(ctx context.Context, id ID, do func(work string) error) error {
	return s.withRoom(ctx, func() error { return s.tryInWork(id, do) })
}

func (s *Store) tryInWork(id ID, do func(work string) error) error {
	work := filepath.Join(s.dir, buildingPrefix+string(id))
	// What an earlier attempt could not delete must not stand in the way of this one, the only one for this id.
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	err := os.Mkdir(work, 0o700)
	if err == nil {
		err = do(work)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(work))
	}
	return nil
}

// imageFiles are the two files of an instance while they are written.
type imageFiles struct{ meta, data *writeBehind }

// createFiles makes them below dir.
func createFiles(dir string) (_ *imageFiles, err error) {
	f := &imageFiles{}
	if f.meta, err = createWriteBehind(filepath.Join(dir, metaName)); err != nil {
		return nil, err
	}
	if f.data, err = createWriteBehind(filepath.Join(dir, dataName)); err != nil {
		return nil, errors.Join(err, f.meta.Close())
	}
	return f, nil
}

// close may be called again. Errors of writing come from sync.
func (f *imageFiles) close() {
	_ = f.meta.Close()
	_ = f.data.Close()
}

func (f *imageFiles) write(ctx context.Context, id ID, fill fill) (Instance, error) {
	inst, err := fill(ctx, converter.Target{ID: id.Bytes(), Meta: f.meta, Data: f.data})
	if err != nil {
		return Instance{}, err
	}
	step.Reached("layerstore/build/filled")
	inst.ID, inst.Kind, inst.Created = id, EROFS, time.Now().UTC()
	return inst, nil
}

// sync puts both files on stable storage and returns what they take on disk. Only then is that number final: filesystems with delayed
// allocation choose the blocks when they write. Both are synced at once, so that together they wait for the disk, and for the
// filesystem's journal, once.
func (f *imageFiles) sync(inst Instance) (allocated int64, err error) {
	var syncing sync.WaitGroup
	var dataErr error
	syncing.Go(func() { dataErr = f.data.Sync() })
	err = f.meta.Sync()
	syncing.Wait()
	if err := errors.Join(err, dataErr); err != nil {
		return 0, err
	}
	return f.allocated(inst)
}

// allocated returns what the files take on disk, after it has checked their lengths.
func (f *imageFiles) allocated(inst Instance) (int64, error) {
	var total int64
	for _, file := range []struct {
		f    *writeBehind
		want int64
	}{{f.meta, inst.MetaBytes}, {f.data, inst.DataBytes}} {
		fi, err := file.f.Stat()
		if err != nil {
			return 0, err
		}
		if fi.Size() != file.want {
			return 0, fmt.Errorf("%s has %d bytes, the converter wrote %d", fi.Name(), fi.Size(), file.want)
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return 0, fmt.Errorf("%s: no file status", fi.Name())
		}
		total += st.Blocks * 512
	}
	return total, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
