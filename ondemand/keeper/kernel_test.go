package keeper

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/fanotify"
)

var preContent = testenv.Feature{Name: "fanotify", Missing: func() error { return fanotify.Probe(os.TempDir()) }}

const (
	pageBytes = 4096
	blobPages = 512
)

// page is what page i of each blob contains.
func page(i int64) []byte {
	b := make([]byte, pageBytes)
	for at := 0; at < len(b); at += 8 {
		binary.LittleEndian.PutUint64(b[at:], uint64(i)<<16|uint64(at)|1)
	}
	return b
}

// filler fills a blob with what its pages contain, slowly enough to be interrupted.
type filler struct{ data *os.File }

func (f filler) Ready(int64, int64) bool { return false }

func (f filler) Fill(ctx context.Context, off, n int64) error {
	if err := sleep(ctx, 200*time.Microsecond); err != nil {
		return err
	}
	for i := off / pageBytes; i*pageBytes < off+n && i < blobPages; i++ {
		if _, err := f.data.WriteAt(page(i), i*pageBytes); err != nil {
			return err
		}
	}
	return nil
}

// fillerChild is a daemon that serves everything that is held.
func fillerChild(ctx context.Context, address string) error {
	c, held, _, err := Dial(ctx, address)
	if err != nil {
		return err
	}
	errs := make(chan error, len(held)+1)
	for _, h := range held {
		g, err := fanotify.Adopt(h.Group, h.Journal, h.Data)
		if err != nil {
			return err
		}
		go func() { errs <- g.Serve(ctx, filler{h.Data}) }()
	}
	fmt.Println("serving", len(held))
	for { // a keeper that is replaced has to be dialed again
		select {
		case err := <-errs:
			return err
		case <-c.Done():
			if errors.Is(c.Err(), ErrSuperseded) {
				return nil
			}
			c.Close()
			if c, _, err = Redial(ctx, address); err != nil {
				return err
			}
		}
	}
}

// readerChild reads all pages of a blob in any order, and compares them. With "denied" each has to fail with EIO.
func readerChild(path string, denied bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fmt.Println("reading")
	b := make([]byte, pageBytes)
	for n, i := range rand.Perm(blobPages) {
		_, err := f.ReadAt(b, int64(i)*pageBytes)
		switch {
		case denied && !errors.Is(err, unix.EIO):
			return fmt.Errorf("page %d: got %v, want EIO", i, err)
		case denied && n == 9:
			fmt.Println("denied")
			return nil
		case denied:
		case err != nil:
			return fmt.Errorf("page %d: %w", i, err)
		case string(b) != string(page(int64(i))):
			return fmt.Errorf("page %d has wrong bytes: %x...", i, b[:16])
		}
	}
	fmt.Println("all right")
	return nil
}

// watched makes a blob that is watched, and held by the keeper at address and nobody else.
func watched(t *testing.T, c *Client, name string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "data")
	data, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	must(t, err)
	defer data.Close()
	must(t, data.Truncate(blobPages*pageBytes))
	g, err := fanotify.New(data)
	must(t, err)
	group, journal := g.Files()
	must(t, c.Hold(timeout(t), Held{Name: name, Group: group, Data: data, Journal: journal}))
	must(t, g.Close())
	return path
}

// release has the keeper let go of everything that a test made.
func release(t *testing.T, at string) {
	t.Helper()
	c, held, _, err := Dial(timeout(t), at)
	must(t, err)
	for _, h := range held {
		h.Close()
		must(t, c.Drop(timeout(t), h.Name))
	}
	must(t, c.Release(timeout(t)))
}

// Readers wait while daemons are killed and keepers replaced, and all they read is right.
func TestReadersSeeNothingOfReplacements(t *testing.T) {
	testenv.Need(t, testenv.Root, preContent)
	at := address(t)
	spawn(t, "keeper", at, "1h").expect("ready")
	c := dialOf(t, at)
	var readers []*child
	for i := range 4 {
		path := watched(t, c, fmt.Sprint(i))
		for range 2 {
			r := spawn(t, "reader", path)
			r.expect("reading")
			readers = append(readers, r)
		}
	}
	must(t, c.Release(timeout(t)))
	for range 20 {
		spawn(t, "keeper", at, "1h", "replace").expect("ready")
		daemon := spawn(t, "filler", at)
		daemon.expect("serving 4")
		spawn(t, "keeper", at, "1h", "replace").expect("ready")
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond) // of work, and then it is killed at any place
		daemon.kill()
	}
	for _, r := range readers {
		if !r.lives() && r.err != nil {
			t.Errorf("a reader has ended: %v", r.err)
		}
	}
	daemon := spawn(t, "filler", at)
	daemon.expect("serving 4")
	for _, r := range readers {
		r.expect("all right")
	}
	daemon.kill()
	release(t, at)
}

// Readers of missing data get EIO when no daemon comes, neither zeros nor nothing, and data when one is back.
func TestReadersAreRefusedWithoutDaemon(t *testing.T) {
	testenv.Need(t, testenv.Root, preContent)
	at := address(t)
	spawn(t, "keeper", at, "100ms").expect("ready")
	c := dialOf(t, at)
	path := watched(t, c, "x")
	waiting := spawn(t, "reader", path, "denied")
	waiting.expect("reading")
	must(t, c.Release(timeout(t)))
	waiting.expect("denied")
	for range 3 {
		daemon := spawn(t, "filler", at)
		daemon.expect("serving 1")
		r := spawn(t, "reader", path)
		r.expect("reading")
		r.expect("all right")
		daemon.kill()
		r = spawn(t, "reader", path, "denied")
		r.expect("reading")
		r.expect("denied")
		spawn(t, "keeper", at, "100ms", "replace").expect("ready") // denies from the first moment on
		r = spawn(t, "reader", path, "denied")
		r.expect("reading")
		r.expect("denied")
	}
	if r := status(t, at); r.State != Denying || r.Denied < 10 {
		t.Errorf("%+v", r)
	}
	release(t, at)
}

// Without a daemon all readers of many blobs get EIO, those that waited and those that come, at the same time or much later; and with one
// they read.
func TestManyAreRefused(t *testing.T) {
	testenv.Need(t, testenv.Root, preContent)
	const blobs = 3 * deniers
	at := address(t)
	spawn(t, "keeper", at, "100ms").expect("ready")
	c := dialOf(t, at)
	var paths []string
	for i := range blobs {
		paths = append(paths, watched(t, c, fmt.Sprint(i)))
	}
	early := readPages(paths)
	must(t, c.Release(timeout(t)))
	for round := range 3 {
		for range paths {
			if err := <-early; !errors.Is(err, unix.EIO) {
				t.Errorf("round %d: got %v, want EIO", round, err)
			}
		}
		eventually(t, "the keeper answers", func() bool { return status(t, at).State == Denying })
		early = readPages(paths)
	}
	for range paths {
		<-early
	}
	if r := status(t, at); r.Denied < 3*blobs {
		t.Errorf("%+v", r)
	}
	daemon := spawn(t, "filler", at)
	daemon.expect(fmt.Sprint("serving ", blobs))
	late := readPages(paths)
	for range paths {
		must(t, <-late)
	}
	daemon.kill()
	release(t, at)
}

// readPages reads a page of each file.
func readPages(paths []string) <-chan error {
	errs := make(chan error, len(paths))
	for _, path := range paths {
		go func() {
			f, err := os.Open(path)
			if err == nil {
				_, err = f.ReadAt(make([]byte, pageBytes), 0)
				err = errors.Join(err, f.Close())
			}
			errs <- err
		}()
	}
	return errs
}

// A blocked reader of a blob that is held by a keeper alone can be killed.
func TestBlockedReaderCanBeKilled(t *testing.T) {
	testenv.Need(t, testenv.Root, preContent)
	at := address(t)
	keep(t, Options{Address: at})
	c := dialOf(t, at)
	r := spawn(t, "reader", watched(t, c, "x"))
	r.expect("reading")
	r.kill()
	must(t, c.Drop(timeout(t), "x"))
}
