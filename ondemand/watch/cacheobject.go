package watch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/cachefiles"
)

// lookup is the cache's. What it does not find has an object all the same, which fails: see cachefiles.Lookup.
func (c *cache) lookup(volume, cookie string) (cachefiles.Object, error) {
	key, err := cachefiles.ParseKey(cookie)
	if err != nil || volume != "erofs,"+c.note.Domain {
		return nil, cachefiles.ErrUnknown
	}
	if key.Instance == trialInstance {
		if key.Mount != 0 {
			return fixed(c.w.o.Cache.TrialMeta), nil
		}
		return fixed(c.w.o.Cache.TrialData), nil
	}
	if key.Mount != 0 {
		f, err := openFile(filepath.Join(c.w.o.Cache.Find(key.Instance), metaName), key.Size)
		if err != nil {
			c.w.o.Log.Error("the metadata of a layer that is mounted over fscache are not here", "instance", key.Instance, "cause", err)
			return failing{key.Size, err}, nil
		}
		return metaObject{f, key.Size}, nil
	}
	return &dataObject{c: c, key: key}, nil
}

// fixed is an object in memory.
type fixed []byte

func (b fixed) Size() int64                                 { return int64(len(b)) }
func (b fixed) Fill(context.Context, int64, int64) error    { return nil }
func (b fixed) ReadAt(p []byte, off int64) (n int, _ error) { return copy(p, b[off:]), nil }

// failing is an object of which nothing can be had.
type failing struct {
	size int64
	err  error
}

func (f failing) Size() int64                              { return f.size }
func (f failing) Fill(context.Context, int64, int64) error { return f.err }
func (f failing) ReadAt([]byte, int64) (int, error)        { return 0, f.err }

// metaObject is a meta image, which is all here.
type metaObject struct {
	*os.File
	size int64
}

func (m metaObject) Size() int64                              { return m.size }
func (m metaObject) Fill(context.Context, int64, int64) error { return nil }

// dataObject is a data blob. The instance may get other files while it is open, with the same bytes but others of them missing: so what is read
// is always read from the file that was filled.
type dataObject struct {
	c   *cache
	key cachefiles.Key

	mu    sync.Mutex
	from  blobFile
	older []*os.File // that somebody may still read from
}

// blobFile is a data blob and who fills it.
type blobFile struct {
	file *os.File
	by   *watched // nil: nothing is missing
}

func (o *dataObject) Size() int64 { return o.key.Size }

// Fill implements cachefiles.Object.
func (o *dataObject) Fill(ctx context.Context, off, n int64) error {
	from, err := o.find()
	if err != nil || from.by == nil {
		return err
	}
	err = from.by.asks.fill(ctx, from.by.fill, off, n)
	if err == nil || !from.by.isClosed() {
		return err
	}
	if from, err = o.find(); err != nil || from.by == nil { // all data have come meanwhile, or there are other files
		return err
	}
	return from.by.asks.fill(ctx, from.by.fill, off, n)
}

// errChanged says that what was filled is not what would be read. The kernel asks again.
var errChanged = errors.New("the files of the layer were replaced meanwhile")

// ReadAt implements cachefiles.Object.
func (o *dataObject) ReadAt(p []byte, off int64) (int, error) {
	from, err := o.find()
	if err != nil {
		return 0, err
	}
	if from.by != nil && !from.by.fill.Ready(off, int64(len(p))) {
		if from, err = o.find(); err != nil || from.by != nil {
			return 0, errors.Join(errChanged, err)
		}
	}
	return from.file.ReadAt(p, off)
}

// find returns the files that the instance has now.
func (o *dataObject) find() (blobFile, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := o.c.w
	w.mu.Lock()
	by := w.current[o.key.Instance]
	w.mu.Unlock()
	if o.from.file != nil && by == o.from.by {
		return o.from, nil
	}
	dir := w.o.Cache.Find(o.key.Instance)
	if by == nil {
		layer, err := w.o.Describe(dir)
		if err != nil {
			return blobFile{}, err
		}
		if layer.Partial {
			return blobFile{}, fmt.Errorf("layer instance %s misses data and is not open", o.key.Instance)
		}
	}
	f, err := openFile(filepath.Join(dir, blob.DataName), o.key.Size)
	if err != nil {
		return blobFile{}, err
	}
	if info, err := f.Stat(); err != nil || by != nil && !os.SameFile(info, by.file) {
		return blobFile{}, errors.Join(errChanged, err, f.Close())
	}
	if o.from.file != nil {
		o.older = append(o.older, o.from.file)
	}
	o.from = blobFile{f, by}
	return o.from, nil
}

// Close implements io.Closer.
func (o *dataObject) Close() (err error) {
	for _, f := range append(o.older, o.from.file) {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// openFile opens a file of a given length for reading.
func openFile(path string, size int64) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Size() != size {
		err = fmt.Errorf("%s has %d bytes, and %d are mounted", path, info.Size(), size)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
