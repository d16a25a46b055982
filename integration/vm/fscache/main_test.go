package fscache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/backendtest"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/file"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/fscache"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/probe"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/vm/guest"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/cachefiles"
)

func TestMain(m *testing.M) {
	if os.Getenv(mounterVariable) != "" {
		os.Exit(mounter())
	}
	if os.Getenv(childVariable) != "" {
		os.Exit(child())
	}
	os.Exit(testenv.Main(m))
}

// need skips the test outside of the virtual machines, and on those of their kernels that have no fscache. Where EROFS_TEST_REQUIRE promises it, the
// test fails instead.
func need(t *testing.T) {
	t.Helper()
	if os.Getenv(guest.AnswersVariable) == "" {
		t.Skip("`make vm` runs this test in virtual machines")
	}
	testenv.Need(t, testenv.Root, testenv.EROFS, testenv.Feature{Name: "fscache", Missing: probe.HaveFscache})
}

// patience is how long something may take that happens at once. The machine is emulated.
const patience = 60 * time.Second

// store has the files of instances, by id in hex.
type store struct {
	dir string
	// fail, if set, is called by every Fill of data.
	fail func(ctx context.Context, instance string, off, n int64) error

	mu    sync.Mutex
	fills map[string][]span // of cookies
	opens map[string]int
}

type span struct{ off, n int64 }

// lookup knows every key of an instance whose files are there, and does not know what is mounted.
func (s *store) lookup(_, cookie string) (cachefiles.Object, error) {
	k, err := cachefiles.ParseKey(cookie)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", cachefiles.ErrUnknown, err)
	}
	name := "data"
	if k.Mount != 0 {
		name = "meta.erofs"
	}
	f, err := os.Open(filepath.Join(s.dir, k.Instance, name))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", cachefiles.ErrUnknown, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opens[cookie]++
	return &object{File: f, store: s, key: k}, nil
}

// object is a file of an instance.
type object struct {
	*os.File
	store *store
	key   cachefiles.Key
}

func (o *object) Size() int64 { return o.key.Size }

func (o *object) Fill(ctx context.Context, off, n int64) error {
	if o.key.Mount == 0 && o.store.fail != nil {
		if err := o.store.fail(ctx, o.key.Instance, off, n); err != nil {
			return err
		}
	}
	o.store.mu.Lock()
	defer o.store.mu.Unlock()
	c := o.key.String()
	o.store.fills[c] = append(o.store.fills[c], span{off, n})
	return nil
}

// asked returns how often each page of a cookie was asked for.
func (s *store) asked(cookie string) map[int64]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	pages := map[int64]int{}
	for _, f := range s.fills[cookie] {
		for p := f.off / 4096; p*4096 < f.off+f.n; p++ {
			pages[p]++
		}
	}
	return pages
}

// instance is an image in the store.
type instance struct {
	id, domain string
	image      fsbackend.Image
	content    []byte
	dataSize   int64
}

var instances, mounts atomic.Uint64

// instance makes one with a file of the given number of full blocks.
func (s *store) instance(t testing.TB, domain string, blocks int) instance {
	t.Helper()
	b := make([]byte, blocks*4096+1000)
	r := rand.NewChaCha8([32]byte{byte(instances.Load()), 1})
	r.Read(b)
	return s.of(t, domain, b)
}

func (s *store) of(t testing.TB, domain string, content []byte) instance {
	t.Helper()
	sum := sha256.Sum256(fmt.Append(nil, "instance ", instances.Add(1), time.Now()))
	i := instance{id: hex.EncodeToString(sum[:]), domain: domain, content: content}
	dir := filepath.Join(s.dir, i.id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	i.image = backendtest.ImageOf(t, dir, content)
	i.dataSize = int64(len(content)) / 4096 * 4096
	return i
}

func (i instance) dataKey() string { return cachefiles.Key{Instance: i.id, Size: i.dataSize}.String() }

// mountable is the image with cookies for one more mount.
func (i instance) mountable() fsbackend.Image {
	img := i.image
	img.Cookies = &fsbackend.Cookies{
		Domain: i.domain, Data: i.dataKey(), Meta: cachefiles.Key{Instance: i.id, Size: 4096, Mount: mounts.Add(1)}.String(),
	}
	return img
}

// cache is a served cache, and a store behind it.
type cache struct {
	*store
	d      *cachefiles.Device
	dir    string
	domain string
	log    *lines
	end    func()
}

var domains atomic.Uint64

// open opens a new cache of a new domain and serves it.
func open(t *testing.T, change ...func(*cachefiles.Options)) *cache {
	t.Helper()
	need(t)
	c := &cache{store: newStore(t.TempDir()), dir: cacheDir(t), log: &lines{}, domain: fmt.Sprintf("d%d-%d", os.Getpid(), domains.Add(1))}
	o := cachefiles.Options{Dir: c.dir, Limits: cachefiles.Limits{Run: 3, Cull: 2, Stop: 1}, Lookup: c.lookup,
		Log: slog.New(slog.NewTextHandler(c.log, nil))}
	for _, f := range change {
		f(&o)
	}
	c.d = mustOpen(t, o)
	c.end = serve(t, c.d)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("stats: %+v\nlog:\n%s", c.d.Stats(), c.log)
		}
		c.close(t)
	})
	return c
}

func newStore(dir string) *store {
	return &store{dir: dir, fills: map[string][]span{}, opens: map[string]int{}}
}

// cacheVariable names a directory on a disk for caches, where that for temporary files is not on one.
const cacheVariable = "EROFS_VM_CACHE"

// cacheDir is a directory on a disk.
func cacheDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(os.Getenv(cacheVariable), "cache-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// mustOpen opens the device, which has just been closed by the test before.
func mustOpen(t *testing.T, o cachefiles.Options) *cachefiles.Device {
	t.Helper()
	start := time.Now()
	for n := 0; ; n++ {
		d, err := cachefiles.Open(o)
		if err == nil {
			if n > 0 {
				t.Logf("the device was busy for %v (%d attempts)", time.Since(start), n)
			}
			return d
		}
		if !errors.Is(err, cachefiles.ErrBusy) || time.Since(start) > patience {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

// serve serves until it is told to end.
func serve(t *testing.T, d *cachefiles.Device) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Serve(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(patience):
			t.Error("Serve does not end")
		}
	})
}

func (c *cache) close(t *testing.T) {
	c.end()
	if err := c.d.Close(); err != nil {
		t.Error(err)
	}
}

var backend = fscache.New(file.New(file.Options{}))

// mount mounts an image until the end of the test.
func mount(t *testing.T, img fsbackend.Image) string {
	t.Helper()
	target, err := tryMount(t, img)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func tryMount(t *testing.T, img fsbackend.Image) (string, error) {
	t.Helper()
	target := t.TempDir()
	err := backend.Mount(t.Context(), img, target)
	t.Cleanup(func() { unmount(t, target) })
	return target, err
}

func unmount(t *testing.T, target string) {
	t.Helper()
	if err := backend.Unmount(context.Background(), target); err != nil {
		t.Error(err)
	}
}

// hasSuperblock says whether the kernel lists the superblock of an image.
func hasSuperblock(t *testing.T, img fsbackend.Image) bool {
	t.Helper()
	k, err := cachefiles.ParseKey(img.Cookies.Meta)
	if err != nil {
		t.Fatal(err)
	}
	name := img.Cookies.Domain + "," + img.Cookies.Meta
	for _, e := range superblocks(t) {
		if strings.HasPrefix(name, e) && e != "" {
			id, ok := cachefiles.Listed(e, img.Cookies.Domain)
			if !ok || !strings.HasPrefix(k.Instance, id) || len(id) < 8 {
				t.Errorf("%s is understood as %q, %t", e, id, ok)
			}
			return true
		}
	}
	return false
}

func superblocks(t *testing.T) []string {
	t.Helper()
	list, err := os.ReadDir("/sys/fs/erofs")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		if e.Name() != "features" {
			names = append(names, e.Name())
		}
	}
	return names
}

// expect reads the whole file and compares.
func expect(t *testing.T, target string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(target, backendtest.FileName))
	if err != nil {
		t.Error(err)
	} else if !bytes.Equal(got, want) {
		t.Errorf("%s: %d wrong bytes", target, len(got))
	}
}

// block reads one block of the file, not from memory.
func block(t *testing.T, target string, n int) ([]byte, error) {
	t.Helper()
	f, err := os.Open(filepath.Join(target, backendtest.FileName))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	_, err = io.ReadFull(io.NewSectionReader(f, int64(n)*4096, 4096), b)
	return b, err
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	start := time.Now()
	for end := start.Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
	t.Logf("after %v: %s", time.Since(start).Round(time.Millisecond), what)
}

// lines is what was logged.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
