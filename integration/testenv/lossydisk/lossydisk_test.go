package lossydisk

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func filled(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }

func (d *Disk) mustWrite(t *testing.T, b []byte, at int64) {
	t.Helper()
	if !d.write(b, at) {
		t.Fatalf("%d bytes at %d do not fit", len(b), at)
	}
}

func (d *Disk) at(at int64, n int) []byte {
	b := make([]byte, n)
	return b[:d.read(b, at)]
}

func TestReadsWhatWasWritten(t *testing.T) {
	d := New(Options{Bytes: 1 << 20})
	d.mustWrite(t, filled(10000, 7), 4000)
	d.mustWrite(t, filled(10, 0), 5000)
	want := append(append(append(make([]byte, 4000), filled(1000, 7)...), make([]byte, 10)...), filled(8990, 7)...)
	if got := d.at(0, 14000); !bytes.Equal(got, want) {
		t.Error("other bytes than were written")
	}
	if n := len(d.at(1<<20-5, 10)); n != 5 {
		t.Errorf("%d bytes at the end, want 5", n)
	}
	if d.write([]byte{1}, 1<<20) || d.write([]byte{1, 2}, 1<<20-1) {
		t.Error("written beyond the end")
	}
}

// TestCut: what was flushed is there after each of many cuts, and of what was not, some is there, some is not, some is torn.
func TestCut(t *testing.T) {
	const block = 4096
	for _, sector := range []int{512, 4096} {
		d := New(Options{Bytes: 64 << 20, SectorBytes: sector, Seed: 1})
		var kept, lost, torn int
		for round := range 30 {
			flushed, unflushed := byte(2*round+1), byte(2*round+2)
			for n := range int64(50) {
				d.mustWrite(t, filled(block, flushed), n*block)
			}
			d.flush()
			for n := range int64(50) {
				d.mustWrite(t, filled(block, unflushed), n*block)
			}
			d.Cut()
			if !d.IsCut() {
				t.Fatal("not cut")
			}
			d.mustWrite(t, filled(block, 255), 0)
			d.flush()
			if got := d.at(0, 1); got[0] != 255 {
				t.Fatal("the ghost forgets")
			}
			d.Restart()
			for n := range int64(50) {
				got := d.at(n*block, block)
				for at := 0; at < block; at += sector {
					if s := got[at : at+sector]; !bytes.Equal(s, filled(sector, flushed)) && !bytes.Equal(s, filled(sector, unflushed)) {
						t.Fatalf("round %d: block %d has %v at %d", round, n, s, at)
					}
				}
				switch {
				case bytes.Equal(got, filled(block, flushed)):
					lost++
				case bytes.Equal(got, filled(block, unflushed)):
					kept++
				default:
					torn++
				}
			}
		}
		t.Logf("sectors of %d: kept %d, lost %d, torn %d; %+v", sector, kept, lost, torn, d.Stats())
		if kept < 100 || lost < 100 || (torn > 0) != (sector == 512) {
			t.Errorf("sectors of %d: kept %d, lost %d, torn %d", sector, kept, lost, torn)
		}
	}
}

func TestCutAfter(t *testing.T) {
	d := New(Options{Bytes: 1 << 20})
	d.CutAfter(3)
	gone := d.Gone()
	d.mustWrite(t, filled(512, 1), 0)
	d.mustWrite(t, filled(512, 2), 512)
	d.flush()
	if d.IsCut() {
		t.Fatal("cut too early")
	}
	d.mustWrite(t, filled(512, 3), 0)
	<-gone
	d.flush()
	d.Restart()
	if d.IsCut() || d.at(0, 1)[0] != 1 || d.at(512, 1)[0] != 2 {
		t.Errorf("cut %t, %d, %d; want the first two writes", d.IsCut(), d.at(0, 1)[0], d.at(512, 1)[0])
	}
}

// TestFilesystems: a sync of a filesystem reaches the disk as a flush, and what was synced is there after a cut, with either kind of loop
// device.
func TestFilesystems(t *testing.T) {
	for filesystem, mkfs := range filesystems {
		for _, direct := range []bool{false, true} {
			name := filesystem + map[bool]string{true: "-direct"}[direct]
			t.Run(name, func(t *testing.T) {
				testenv.Need(t, testenv.Root, testenv.Tool("losetup"), testenv.Tool(mkfs[0]))
				d := New(Options{Bytes: MinBytes, Seed: 2})
				o := AttachOptions{DirectIO: direct}
				fuse, dir := t.TempDir(), t.TempDir()
				attached(t, d, fuse, o, func(dev *Device) {
					must(t, dev.Format(t.Context(), filesystem))
					must(t, dev.Mount(filesystem, dir))
					path := filepath.Join(dir, "file")
					must(t, os.WriteFile(path, filled(100000, 1), 0o600))
					before := d.Stats().Flushes
					f, err := os.OpenFile(path, os.O_RDWR, 0)
					must(t, err)
					must(t, unix.Syncfs(int(f.Fd())))
					_, err = f.WriteAt(filled(50000, 2), 30000)
					must(t, err)
					synced := d.Stats().Flushes
					must(t, f.Sync())
					if after := d.Stats().Flushes; synced == before || after == synced {
						t.Errorf("flushes: %d before syncfs, %d after, %d after fsync", before, synced, after)
					}
					must(t, f.Close())
					must(t, os.WriteFile(filepath.Join(dir, "unsynced"), filled(100000, 3), 0o600))
					d.Cut()
					must(t, Unmount(dir))
				})
				d.Restart()
				attached(t, d, fuse, o, func(dev *Device) {
					must(t, dev.Mount(filesystem, dir))
					got, err := os.ReadFile(filepath.Join(dir, "file"))
					must(t, err)
					want := filled(100000, 1)
					copy(want[30000:], filled(50000, 2))
					if !bytes.Equal(got, want) {
						t.Error("what was synced is not there")
					}
					must(t, Unmount(dir))
				})
				t.Logf("%+v", d.Stats())
			})
		}
	}
}

// TestAbort: who waits for a disk that does not answer is freed.
func TestAbort(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.Tool("losetup"))
	d := New(Options{Bytes: MinBytes})
	dev, err := d.Attach(t.Context(), t.TempDir(), AttachOptions{})
	must(t, err)
	f, err := os.OpenFile(dev.Path, os.O_RDWR, 0)
	must(t, err)
	d.mu.Lock() // no request is answered
	synced := make(chan error)
	go func() {
		_, err := f.WriteAt(filled(4096, 1), 0)
		if err == nil {
			err = f.Sync()
		}
		synced <- err
	}()
	time.Sleep(50 * time.Millisecond) // so that it most likely waits; the test holds either way
	must(t, dev.Abort())
	if err := <-synced; err == nil {
		t.Error("the write succeeded")
	}
	d.mu.Unlock()
	f.Close()
	must(t, dev.Detach(t.Context()))
}

func attached(t *testing.T, d *Disk, dir string, o AttachOptions, use func(*Device)) {
	t.Helper()
	dev, err := d.Attach(t.Context(), dir, o)
	must(t, err)
	watchdog := time.AfterFunc(2*time.Minute, func() { _ = dev.Abort() })
	defer watchdog.Stop()
	defer func() { must(t, dev.Detach(t.Context())) }()
	use(dev)
}
