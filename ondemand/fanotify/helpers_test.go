package fanotify

import (
	"archive/tar"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

// roleEnv says what a process that was started from the test binary is to be.
const roleEnv = "FANOTIFY_TEST_ROLE"

var roles = map[string]func() error{}

func TestMain(m *testing.M) {
	if role, ok := roles[os.Getenv(roleEnv)]; ok {
		if err := role(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(testenv.Main(m))
}

var preContent = testenv.Feature{Name: "pre-content", Missing: func() error { return Probe(os.TempDir()) }}

const pageBytes = 4096

// layer is a layer instance whose one file is read through an EROFS mount.
type layer struct {
	dir    string
	size   int64    // of the file
	source *os.File // the data blob, complete
	data   *os.File // the data blob, empty
	path   string   // of the file in the mount
}

// fileName is the file of a layer.
const fileName = "file"

// contentAt fills p, whose length is a multiple of 8 as off is, with what is at off in the file of a layer.
func contentAt(p []byte, off int64) {
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], wordAt(off+int64(i)))
	}
}

// wordAt is different everywhere, and no byte of it is zero.
func wordAt(off int64) uint64 { return uint64(off)*0x9E3779B97F4A7C15 | 0x0101010101010101 }

// checkContent compares what was read at off with what it should be.
func checkContent(p []byte, off int64) error {
	for i := 0; i+8 <= len(p); i += 8 {
		if got, want := binary.LittleEndian.Uint64(p[i:]), wordAt(off+int64(i)); got != want {
			return fmt.Errorf("wrong bytes at %d: %#x, want %#x", off+int64(i), got, want)
		}
	}
	return nil
}

// newLayer makes a layer that is not mounted yet.
func newLayer(t testing.TB, size int64) *layer {
	t.Helper()
	l := &layer{dir: t.TempDir(), size: size}
	l.source = l.create(t, "source")
	meta := l.create(t, "meta")
	r, err := converter.FromTar(t.Context(), tarOf(size), converter.Target{Meta: meta, Data: l.source}, converter.Limits{})
	must(t, err)
	l.data = l.create(t, "data")
	must(t, l.data.Truncate(r.DataBytes))
	return l
}

func (l *layer) create(t testing.TB, name string) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(l.dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func tarOf(size int64) io.Reader {
	r, w := io.Pipe()
	go func() {
		tw := tar.NewWriter(w)
		err := tw.WriteHeader(&tar.Header{Name: fileName, Typeflag: tar.TypeReg, Mode: 0o644, Size: size})
		p := make([]byte, 1<<20)
		for off := int64(0); off < size && err == nil; off += int64(len(p)) {
			p = p[:min(int64(len(p)), size-off)]
			contentAt(p, off)
			_, err = tw.Write(p)
		}
		if err == nil {
			err = tw.Close()
		}
		w.CloseWithError(err)
	}()
	return r
}

// mount mounts the layer until the test ends.
func (l *layer) mount(t testing.TB) {
	t.Helper()
	target, err := os.MkdirTemp(l.dir, "mnt")
	must(t, err)
	must(t, unix.Mount(filepath.Join(l.dir, "meta"), target, "erofs", unix.MS_RDONLY, "device="+l.data.Name()))
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	l.path = filepath.Join(target, fileName)
}

// filler fills a blob from its source.
type filler struct {
	source, data *os.File
	present      []atomic.Bool // pages
	before       func(ctx context.Context, off, n int64) error
	fills        atomic.Int64
}

func (l *layer) filler() *filler {
	info, err := l.data.Stat()
	if err != nil {
		panic(err)
	}
	return &filler{source: l.source, data: l.data, present: make([]atomic.Bool, (info.Size()+pageBytes-1)/pageBytes)}
}

func (f *filler) Ready(off, n int64) bool {
	for p := off / pageBytes; p*pageBytes < off+n; p++ {
		if !f.present[p].Load() {
			return false
		}
	}
	return true
}

func (f *filler) Fill(ctx context.Context, off, n int64) error {
	f.fills.Add(1)
	if f.before != nil {
		if err := f.before(ctx, off, n); err != nil {
			return err
		}
	}
	return f.fill(off, n)
}

func (f *filler) fill(off, n int64) error {
	p := make([]byte, n)
	if _, err := f.source.ReadAt(p, off); err != nil {
		return err
	}
	if _, err := f.data.WriteAt(p, off); err != nil {
		return err
	}
	for p := off / pageBytes; p*pageBytes < off+n; p++ {
		f.present[p].Store(true)
	}
	return nil
}

func (f *filler) fillAll() error { return f.fill(0, int64(len(f.present))*pageBytes) }

// serve serves a group until the test ends or stop is called.
func serve(t testing.TB, g *Group, f Filler) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := g.Serve(ctx, f); err != nil {
			t.Error(err)
		}
	}()
	stop = func() { cancel(); <-ended }
	t.Cleanup(stop)
	return stop
}

// watch makes a group for the layer, and closes it when the test ends.
func (l *layer) watch(t testing.TB) *Group {
	t.Helper()
	g, err := New(l.data)
	must(t, err)
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// reading is a read that may be held.
type reading chan error

// read starts to read a page of the file.
func (l *layer) read(t testing.TB, page int64) reading {
	t.Helper()
	return readOf(l.open(t), page)
}

// open opens the file so that EROFS reads single pages.
func (l *layer) open(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Open(l.path)
	must(t, err)
	must(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM))
	return f
}

// readOf reads a page of the file of a layer, and closes it.
func readOf(f *os.File, page int64) reading {
	r := make(reading, 1)
	go func() {
		err := readPage(int(f.Fd()), page)
		f.Close()
		r <- err
	}()
	return r
}

func readPage(fd int, page int64) error {
	p := make([]byte, pageBytes)
	switch n, err := unix.Pread(fd, p, page*pageBytes); {
	case err != nil:
		return err
	case n != len(p):
		return fmt.Errorf("read %d bytes at page %d", n, page)
	}
	return checkContent(p, page*pageBytes)
}

// wait returns what the read returned.
func (r reading) wait(t testing.TB) error {
	t.Helper()
	select {
	case err := <-r:
		return err
	case <-time.After(time.Minute):
		t.Fatal("a read is held for ever")
		return nil
	}
}

// pageOf is where in the blob a page of the file begins: the only file of a layer has the front of its blob.
func pageOf(page int64) int64 { return page * pageBytes }

// queued says how many events of a group nobody has read.
func queued(t testing.TB, g *Group) int {
	t.Helper()
	n, err := unix.IoctlGetInt(g.fd, unix.TIOCINQ)
	must(t, err)
	return n / metadataBytes
}

// gates hold fills of certain offsets until they are opened.
type gates map[int64]chan struct{}

func (g gates) before(ctx context.Context, off, _ int64) error {
	gate, ok := g[off]
	if !ok {
		return nil
	}
	select {
	case <-gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
