package watch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/cachefiles"
)

// What the kernel does is tested by integration/vm; here it is played by calls.

const testDomain = domainPrefix + "test"

// open has the kernel open a file of an instance, until the test ends.
func (d *daemon) openFile(t *testing.T, k cachefiles.Key) cachefiles.Object {
	t.Helper()
	c := &cache{w: d.Watcher, note: cacheNote{Domain: testDomain}}
	o, err := c.lookup("erofs,"+testDomain, k.String())
	must(t, err)
	if o.Size() != k.Size {
		t.Errorf("%s is %d bytes long", k, o.Size())
	}
	if closer, ok := o.(io.Closer); ok {
		t.Cleanup(func() { must(t, closer.Close()) })
	}
	return o
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	return info.Size()
}

// dataOf has the kernel open the data blob of an instance.
func (d *daemon) dataOf(t *testing.T, in *instance) cachefiles.Object {
	return d.openFile(t, cachefiles.Key{Instance: in.name, Size: fileSize(t, filepath.Join(in.dir, blob.DataName))})
}

// readAll reads an object to its end as the device does.
func readAll(ctx context.Context, o cachefiles.Object) ([]byte, error) {
	p := make([]byte, o.Size())
	if err := o.Fill(ctx, 0, o.Size()); err != nil {
		return nil, err
	}
	_, err := o.ReadAt(p, 0)
	return p, err
}

// wantAll expects the bytes of the files of an instance in its data blob.
func wantAll(t *testing.T, in *instance, o cachefiles.Object) {
	t.Helper()
	got, err := readAll(t.Context(), o)
	must(t, err)
	for name, content := range in.files {
		if !bytes.Contains(got, content) {
			t.Errorf("%s is not in what was read", name)
		}
	}
}

func TestCacheObjects(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	in := w.usual(1)
	d.open(in)
	o := d.dataOf(t, in)
	// What was not filled is not read, whatever the caller thinks.
	if n, err := o.ReadAt(make([]byte, 4096), 0); err == nil {
		t.Fatalf("%d bytes were read that are missing", n)
	}
	wantAll(t, in, o)
	if r := d.report(in); r == nil || r.Requests.Events == 0 || r.Requests.Asked == 0 || r.Requests.Fills.Count == 0 {
		t.Errorf("what was asked is not reported: %+v", r)
	}
	// When all is here nobody has the layer open any more, and it can be read all the same.
	eventually(t, "it is complete and closed", func() bool { return d.report(in) == nil })
	wantAll(t, in, o)
	wantAll(t, in, d.dataOf(t, in))

	meta := filepath.Join(in.dir, metaName)
	want, err := os.ReadFile(meta)
	must(t, err)
	got, err := readAll(t.Context(), d.openFile(t, cachefiles.Key{Instance: in.name, Size: int64(len(want)), Mount: 7}))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("metadata: %d bytes, %v", len(got), err)
	}
	for mount, want := range map[uint64]string{0: "data", 1: "meta of the trial"} {
		got, err := readAll(t.Context(), d.openFile(t, cachefiles.Key{Instance: trialInstance, Size: int64(len(want)), Mount: mount}))
		if err != nil || string(got) != want {
			t.Errorf("trial: %q, %v", got, err)
		}
	}
}

// TestCacheObjectOfOthers: a mount of what is not here, or is of another length, is answered by failures and not at all by other bytes. What is
// no key is not known.
func TestCacheObjectOfOthers(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	in := w.usual(1)
	d.open(in)
	size := fileSize(t, filepath.Join(in.dir, blob.DataName))
	for name, k := range map[string]cachefiles.Key{
		"no instance, data":     {Instance: strings.Repeat("12", 32), Size: 8192},
		"no instance, metadata": {Instance: strings.Repeat("12", 32), Size: 8192, Mount: 3},
		"other length, data":    {Instance: in.name, Size: size + 4096},
		"other length, meta":    {Instance: in.name, Size: 123, Mount: 3},
	} {
		o := d.openFile(t, k)
		if err := o.Fill(t.Context(), 0, 16); err == nil {
			t.Errorf("%s: filled", name)
		}
		if _, err := o.ReadAt(make([]byte, 16), 0); err == nil {
			t.Errorf("%s: read", name)
		}
	}
	c := &cache{w: d.Watcher, note: cacheNote{Domain: testDomain}}
	for _, k := range [][2]string{{"erofs," + testDomain, "other"}, {"erofs,other", cachefiles.Key{Instance: in.name, Size: size}.String()}} {
		if _, err := c.lookup(k[0], k[1]); !errors.Is(err, cachefiles.ErrUnknown) {
			t.Errorf("%q: %v", k, err)
		}
	}
}

// TestCacheObjectOfNewFiles: an instance that is made again has other files, of which other data are missing. What is read is what was filled.
func TestCacheObjectOfNewFiles(t *testing.T) {
	w := newWorld(t)
	d := w.daemon()
	in := w.usual(1)
	d.open(in)
	o := d.dataOf(t, in)
	must(t, o.Fill(t.Context(), 0, 4096))
	first := make([]byte, 4096)
	_, err := o.ReadAt(first, 0)
	must(t, err)

	orphan := filepath.Join(w.root, "orphans", "1")
	must(t, os.Rename(in.dir, orphan))
	d.Left(in.name, orphan)
	release := in.block()
	in.make(in.dir)
	d.open(in)
	again := make([]byte, 4096)
	if _, err := o.ReadAt(again, 0); err == nil && !bytes.Equal(first, again) {
		t.Error("what is missing in the new files was read from them")
	}
	release()
	wantAll(t, in, o)
}
