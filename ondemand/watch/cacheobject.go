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
	whole *os.File // in which nothing is missing; nil until it is needed
}

// blobFile is a data blob and who fills it.
type blobFile struct {
	file *os.File // of by, which may close it
	by   *watched // nil: nothing is missing
}

func (o *dataObject) Size() int64 { return o.key.Size }

// Fill implements cachefiles.Object.
func (o *dataObject) Fill(ctx context.Context, off, n int64) error {
	for {
		from, err := o.find()
		if err != nil || from.by == nil {
			return err
		}
		err = from.by.asks.fill(ctx, from.by.fill, off, n)
		if err == nil || !from.by.closed.Load() || ctx.Err() != nil {
			return err
		}
		// All data have come meanwhile, or there are other files.
	}
}

// errChanged says that what was filled is not what would be read. The kernel asks again.
var errChanged = errors.New("the files of the layer were replaced meanwhile")

// ReadAt implements cachefiles.Object.
func (o *dataObject) ReadAt(p []byte, off int64) (int, error) {
	for {
		from, err := o.find()
		if err != nil {
			return 0, err
		}
		if from.by == nil {
			return from.file.ReadAt(p, off)
		}
		n := 0
		if err = errChanged; from.by.fill.Ready(off, int64(len(p))) {
			n, err = from.file.ReadAt(p, off)
		}
		if err == nil || !from.by.closed.Load() {
			return n, err
		}
	}
}

// find returns the files that the instance has now. While data are missing that is the open file that they are written through: reads through one
// that was opened later could have to wait for a fanotify group of ours, see kernel.md 2.8, and so for this process when it ends.
func (o *dataObject) find() (blobFile, error) {
	w := o.c.w
	w.mu.Lock()
	by := w.current[o.key.Instance]
	w.mu.Unlock()
	if by != nil && !by.closed.Load() { // one that is complete is closed a moment before it is forgotten
		if size := by.file.Size(); size != o.key.Size {
			return blobFile{}, fmt.Errorf("the data blob of layer instance %s has %d bytes, and %d are mounted", o.key.Instance, size, o.key.Size)
		}
		return blobFile{by.data, by}, nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.whole == nil {
		f, err := o.openWhole(w.o.Cache.Find(o.key.Instance))
		if err != nil {
			return blobFile{}, err
		}
		o.whole = f
	}
	return blobFile{file: o.whole}, nil
}

// openWhole opens the data blob in a directory if nothing is missing in it. There may be other files before it has returned.
func (o *dataObject) openWhole(dir string) (_ *os.File, err error) {
	path := filepath.Join(dir, blob.DataName)
	f, err := openFile(path, o.key.Size)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	layer, err := o.c.w.o.Describe(dir)
	if err != nil {
		return nil, err
	}
	if layer.Partial {
		return nil, fmt.Errorf("layer instance %s misses data and is not open", o.key.Instance)
	}
	opened, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if there, err := os.Stat(path); err != nil || !os.SameFile(opened, there) { // what was described was another one
		return nil, errors.Join(errChanged, err)
	}
	return f, nil
}

// Close implements io.Closer.
func (o *dataObject) Close() error {
	if o.whole == nil {
		return nil
	}
	return o.whole.Close()
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
