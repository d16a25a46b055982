package blob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/lossydisk"
)

const (
	// cutExtents and cutMost make a blob of about 5 MB, so that one lives through several cuts, and each test sees several made.
	cutExtents, cutMost = 1200, 8000
	// cutRequests is how many requests of the disk the power lasts at most: about as many as Create and six syncs of ext4 take.
	cutRequests = 120
	// cutLife is how long it lasts at most. A filesystem that writes nothing makes no requests.
	cutLife = 3 * time.Second
	// cutTimeout bounds what happens to the disk between two cuts. Then it begins to fail, so that nothing waits for it for ever.
	cutTimeout = 2 * time.Minute
)

// TestPowerCutsOnFilesystems fills blobs on filesystems of a disk that loses at a power cut what was not flushed. After the restart, no
// extent is present whose bytes are wrong, each that was durable before the cut is present, and no blob is unusable but those whose
// directory was not yet durable.
func TestPowerCutsOnFilesystems(t *testing.T) {
	cuts := 2
	if os.Getenv("EROFS_TEST_LONG") != "" {
		cuts = 40
	}
	for n, filesystem := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(filesystem, func(t *testing.T) {
			testenv.Need(t, testenv.Root, testenv.Tool("losetup"), testenv.Tool("mkfs."+filesystem))
			w := newCutWorld(t, filesystem, uint64(n))
			for range cuts {
				w.cut()
			}
			w.report(cuts)
		})
	}
}

// cutWorld is a disk that lives through power cuts, and what has to be on it.
type cutWorld struct {
	t          *testing.T
	filesystem string
	disk       *lossydisk.Disk
	fuse, root string
	rand       *rand.Rand
	direct     bool // I/O of the loop device, every other time

	blobs []*cutBlob
	made  int // blobs, for their names and contents
	count struct{ made, unfinished, complete, written, promised, recorded, gone, damaged int }
}

// cutBlob is a blob on the disk.
type cutBlob struct {
	dir       string
	id        [32]byte
	extents   []Extent
	dataBytes int64

	mu       sync.Mutex
	durable  bool         // the directory was, before the cut
	promised map[int]bool // extents that were durable before a cut
	written  map[int]bool // in this life
}

func newCutWorld(t *testing.T, filesystem string, seed uint64) *cutWorld {
	w := &cutWorld{
		t: t, filesystem: filesystem, fuse: t.TempDir(), root: t.TempDir(), rand: rand.New(rand.NewPCG(seed, 1)),
		disk: lossydisk.New(lossydisk.Options{Bytes: lossydisk.MinBytes, Seed: seed}),
	}
	w.attached(func(dev *lossydisk.Device) {
		must(t, dev.Format(t.Context(), filesystem))
		must(t, dev.Mount(filesystem, w.root))
		must(t, os.MkdirAll(w.layers(), 0o700))
		must(t, osDirectory(w.root).sync())
		must(t, osDirectory(w.layers()).sync())
		must(t, lossydisk.Unmount(w.root))
	})
	return w
}

func (w *cutWorld) layers() string { return filepath.Join(w.root, "layers") }

// attached calls use while the disk is a device, which is gone when it returns, whatever happens.
func (w *cutWorld) attached(use func(*lossydisk.Device)) {
	w.t.Helper()
	dev, err := w.disk.Attach(w.t.Context(), w.fuse, lossydisk.AttachOptions{DirectIO: w.direct})
	must(w.t, err)
	watchdog := time.AfterFunc(cutTimeout, func() {
		fmt.Fprintln(os.Stderr, "the disk fails: the test takes too long")
		_ = dev.Abort()
	})
	defer watchdog.Stop()
	defer func() {
		if w.t.Failed() {
			_ = lossydisk.Unmount(w.root) // the test may have ended before
		}
		must(w.t, dev.Detach(context.WithoutCancel(w.t.Context())))
	}()
	use(dev)
}

// cut is one life of the machine: it starts, checks what is there, works until its power is cut, and is switched on again.
func (w *cutWorld) cut() {
	w.t.Helper()
	w.live(true)
	w.disk.Restart()
	w.direct = !w.direct
	w.live(false)
}

func (w *cutWorld) live(work bool) {
	w.t.Helper()
	w.attached(func(dev *lossydisk.Device) {
		must(w.t, dev.Mount(w.filesystem, w.root))
		w.check()
		if work {
			w.work()
		}
		must(w.t, lossydisk.Unmount(w.root))
	})
}

// work makes and fills blobs until the power is cut.
func (w *cutWorld) work() {
	w.disk.CutAfter(1 + w.rand.IntN(cutRequests))
	gone := w.disk.Gone()
	life := time.AfterFunc(cutLife, w.disk.Cut)
	defer life.Stop()
	ctx, cancel := context.WithCancel(w.t.Context())
	var running sync.WaitGroup
	syncer := NewSyncer(func(b *Blob, err error) { w.t.Errorf("%s: %v", b.name, err) })
	running.Go(func() { syncer.Run(ctx) })
	defer running.Wait()
	defer cancel()
	for !w.disk.IsCut() {
		c := w.unfilled()
		if c == nil {
			var err error
			if c, err = w.create(); err != nil {
				w.t.Errorf("a disk without power gives no errors: %v", err)
				return
			}
		}
		w.fill(c, syncer, gone)
	}
}

// unfilled returns a blob to go on with, if there is one; sometimes it wants another one.
func (w *cutWorld) unfilled() *cutBlob {
	for _, c := range w.blobs {
		if len(c.promised) < cutExtents && len(c.written) < cutExtents && w.rand.IntN(6) > 0 {
			return c
		}
	}
	return nil
}

// create makes a blob as the layer store does: in a directory that becomes durable at the end.
func (w *cutWorld) create() (*cutBlob, error) {
	w.made++
	c := &cutBlob{
		dir: filepath.Join(w.layers(), fmt.Sprint(w.made)), id: testID, promised: map[int]bool{}, written: map[int]bool{},
	}
	c.id[0] = byte(w.made)
	c.extents, c.dataBytes = someExtents(rand.New(rand.NewPCG(uint64(w.made), 2)), cutExtents, cutMost)
	w.blobs = append(w.blobs, c)
	w.count.made++
	err := errors.Join(os.Mkdir(c.dir, 0o700), Create(c.dir, c.id, c.dataBytes, slices.Values(c.extents)),
		osDirectory(c.dir).sync(), osDirectory(w.layers()).sync())
	c.durable = err == nil && !w.disk.IsCut()
	return c, err
}

// fill writes absent extents with two goroutines while a third flushes now and then, until the power is cut or all are present.
func (w *cutWorld) fill(c *cutBlob, syncer *Syncer, gone <-chan struct{}) {
	b, err := Open(c.dir, c.id, Options{Syncer: syncer})
	if err != nil {
		w.t.Errorf("%s, before the cut: %v", c.dir, err)
		return
	}
	var writers, flusher sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		order := w.rand.Perm(cutExtents)
		writers.Go(func() { c.write(w.t, b, order, gone) })
	}
	pauses := rand.New(rand.NewPCG(w.rand.Uint64(), 3))
	flusher.Go(func() {
		for {
			select {
			case <-gone:
				return
			case <-done:
				c.promise(w, b)
				return
			case <-time.After(time.Duration(pauses.IntN(20)) * time.Millisecond):
				c.promise(w, b)
			}
		}
	})
	writers.Wait()
	close(done)
	flusher.Wait()
	if err := b.Close(); err != nil {
		w.t.Errorf("%s: %v", c.dir, err)
	}
}

func (c *cutBlob) write(t *testing.T, b *Blob, order []int, gone <-chan struct{}) {
	for n, i := range order {
		select {
		case <-gone:
			return
		default:
		}
		if err := b.Write(i, contentOf(i+int(c.id[0]), c.extents[i])); err != nil {
			t.Error(err)
			return
		}
		c.mu.Lock()
		c.written[i] = true
		c.mu.Unlock()
		if n%8 == 0 {
			time.Sleep(time.Millisecond) // lets flushes come between
		}
	}
}

// promise flushes the blob. What is durable then, while the power is on, is to be there after the cut.
func (c *cutBlob) promise(w *cutWorld, b *Blob) {
	if err := b.Flush(); err != nil {
		w.t.Errorf("%s: %v", c.dir, err)
		return
	}
	var durable []int
	for i := range c.extents {
		if b.Durable(i) {
			durable = append(durable, i)
		}
	}
	if w.disk.IsCut() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range durable {
		c.promised[i] = true
	}
}

// check opens every blob, as the daemon does when it starts.
func (w *cutWorld) check() {
	w.t.Helper()
	var kept []*cutBlob
	for _, c := range w.blobs {
		if w.checkBlob(c) {
			kept = append(kept, c)
			continue
		}
		w.count.unfinished++
		must(w.t, os.RemoveAll(c.dir))
	}
	w.blobs = kept
}

// checkBlob says whether the blob is there.
func (w *cutWorld) checkBlob(c *cutBlob) bool {
	w.t.Helper()
	b, err := Open(c.dir, c.id, Options{})
	if err != nil {
		if c.durable || !errors.Is(err, ErrUnusable) && !errors.Is(err, fs.ErrNotExist) {
			w.t.Fatalf("durable before the cut: %t; after it: %v", c.durable, err)
		}
		return false
	}
	defer func() { must(w.t, b.Close()) }()
	if b.Lost() != nil {
		if c.durable {
			w.t.Fatal(b.Lost())
		}
		return false
	}
	for i, e := range c.extents {
		w.checkExtent(c, b, i, e)
	}
	c.durable = true // what was read after the cut was on the disk
	c.written = map[int]bool{}
	return true
}

func (w *cutWorld) checkExtent(c *cutBlob, b *Blob, i int, e Extent) {
	w.t.Helper()
	got := make([]byte, e.Length)
	_, err := b.data.ReadAt(got, e.Offset)
	must(w.t, err)
	right := slices.Equal(got, contentOf(i+int(c.id[0]), e))
	if b.Present(i) && !right {
		w.t.Fatalf("%s: extent %d is present and has other bytes", c.dir, i)
	}
	if c.promised[i] && !b.Present(i) {
		w.t.Fatalf("%s: extent %d was durable and is not present", c.dir, i)
	}
	if !c.written[i] {
		return
	}
	w.count.written++
	switch {
	case c.promised[i]:
		w.count.promised++
	case b.Present(i):
		w.count.recorded++
	case right:
		w.count.gone++
	default:
		w.count.damaged++
	}
	if b.Present(i) {
		c.promised[i] = true
	}
}

// report fails if many cuts did no harm, for then the test shows nothing.
func (w *cutWorld) report(cuts int) {
	for _, c := range w.blobs {
		if len(c.promised) == cutExtents {
			w.count.complete++
		}
	}
	c := w.count
	w.t.Logf("%d cuts, disk %+v", cuts, w.disk.Stats())
	w.t.Logf("%d blobs made, %d not finished at the cut, %d complete; %d extents written in the life that was cut: %d durable and present, "+
		"%d recorded without the word of a Flush, %d on the disk and not recorded, %d lost",
		c.made, c.unfinished, c.complete, c.written, c.promised, c.recorded, c.gone, c.damaged)
	s := w.disk.Stats()
	if s.Cuts != cuts {
		w.t.Errorf("%d cuts, want %d", s.Cuts, cuts)
	}
	if cuts > 10 && (s.Lost == 0 || s.Torn == 0 || c.promised == 0 || c.damaged == 0) {
		w.t.Error("the cuts lost nothing that matters")
	}
}
