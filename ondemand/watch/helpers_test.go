package watch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/indextest"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/zstdchunked"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/tartest"
	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/fanotify"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// keeperEnv has the test binary be a keeper at an address, which must be another process: it is killed.
const keeperEnv = "WATCH_TEST_KEEPER"

// patient bounds every wait. It is long because a failure may be slow, not because success is.
const patient = 60 * time.Second

func TestMain(m *testing.M) {
	if address := os.Getenv(keeperEnv); address != "" {
		go func() { // it ends with the test
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		err := keeper.Serve(ctx, keeper.Options{Address: address, Patience: patient, Ready: func() { fmt.Println("ready") }})
		fmt.Fprintln(os.Stderr, "keeper:", err)
		os.Exit(1)
	}
	os.Exit(testenv.Main(m))
}

var preContent = testenv.Feature{Name: "pre-content", Missing: func() error { return fanotify.Probe(os.TempDir()) }}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patient); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// world is a root with layer instances, and a keeper.
type world struct {
	t       *testing.T
	root    string
	address string
	keeper  *exec.Cmd

	mu     sync.Mutex
	known  map[string]*instance // by name
	asked  []string             // directories that somebody wanted described
	gone   []string             // directories of orphans
	secret []byte               // what the keeper had for a new process
}

func newWorld(t *testing.T) *world {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.EROFS, preContent)
	run, err := os.MkdirTemp("", "watch") // the paths of the test's own directories may be too long for a socket
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(run) })
	w := &world{t: t, root: t.TempDir(), address: filepath.Join(run, "k", "s"), known: map[string]*instance{}}
	for _, dir := range []string{"layers", "orphans", "m"} {
		must(t, os.Mkdir(filepath.Join(w.root, dir), 0o700))
	}
	w.startKeeper()
	t.Cleanup(w.killKeeper)
	return w
}

func (w *world) startKeeper() {
	w.t.Helper()
	w.keeper = exec.Command(os.Args[0])
	w.keeper.Env = append(os.Environ(), keeperEnv+"="+w.address)
	w.keeper.Stderr = w.t.Output()
	_, err := w.keeper.StdinPipe()
	must(w.t, err)
	out, err := w.keeper.StdoutPipe()
	must(w.t, err)
	must(w.t, w.keeper.Start())
	ready := make([]byte, len("ready\n"))
	_, err = io.ReadFull(out, ready)
	must(w.t, err)
}

func (w *world) killKeeper() {
	if w.keeper.ProcessState == nil {
		_ = w.keeper.Process.Kill()
		_ = w.keeper.Wait() // it was killed
	}
}

// pauseKeeper has the keeper do nothing until SIGCONT. Each of its threads stops on its own.
func (w *world) pauseKeeper() {
	w.t.Helper()
	must(w.t, w.keeper.Process.Signal(unix.SIGSTOP))
	eventually(w.t, "the keeper has stopped", func() bool {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", w.keeper.Process.Pid))
		must(w.t, err)
		return len(stats) > 0 && !slices.ContainsFunc(stats, func(path string) bool {
			b, _ := os.ReadFile(path) // a thread may have ended
			_, after, _ := bytes.Cut(b, []byte(") "))
			return !bytes.HasPrefix(after, []byte("T"))
		})
	})
}

// wait returns what comes from a channel.
func wait[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patient):
		t.Fatal("nothing comes")
		panic("not reached")
	}
}

// holds is what the keeper holds.
func (w *world) holds() []string {
	w.t.Helper()
	r, err := keeper.Status(w.t.Context(), w.address)
	must(w.t, err)
	return r.Names
}

// instance is a lazy layer instance, and where its bytes come from.
type instance struct {
	w    *world
	name string
	id   [32]byte
	dir  string // where it was made
	data []byte // of the layer's blob
	// files are the contents of its files.
	files map[string][]byte
	check func(ctx context.Context, pace ondemand.Pace, put func(int, []byte) error) error
	index *index.Index

	mu       sync.Mutex
	closed   chan struct{} // what is asked for while it is open has to wait
	asked    int
	complete int
}

// layer makes an instance of files in layers/, the number of which is its name.
func (w *world) layer(number byte, files ...tartest.File) *instance {
	w.t.Helper()
	in := &instance{w: w, id: [32]byte{number}, files: map[string][]byte{}}
	in.name = fmt.Sprintf("%x", in.id)
	for _, f := range files {
		in.files[f.Name] = f.Data
	}
	described, data := indextest.PodmanLayer(w.t, tartest.Pack(files), 16384)
	in.data = data
	var err error
	in.index, err = zstdchunked.Open(described, bytes.NewReader(data), index.Limits{})
	must(w.t, err)
	in.make(filepath.Join(w.root, "layers", in.name))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.known[in.name] = in
	return in
}

// make makes the files of the instance.
func (in *instance) make(dir string) {
	in.w.t.Helper()
	in.dir = dir
	must(in.w.t, os.Mkdir(dir, 0o700))
	meta, err := os.Create(filepath.Join(dir, metaName))
	must(in.w.t, err)
	defer meta.Close()
	made, err := converter.FromIndex(in.w.t.Context(), in.index, meta, in.id, converter.Limits{})
	must(in.w.t, err)
	must(in.w.t, blob.Create(dir, in.id, made.DataBytes, func(yield func(blob.Extent) bool) {
		for _, x := range made.Extents {
			if !yield(blob.Extent{
				Offset: x.At, Length: uint32(x.Length), BlobOffset: x.Blob.Start, BlobLength: uint32(x.Blob.Bytes()), InnerOffset: x.Skip,
				Kind: uint8(in.index.Codec), Digest: x.Digest,
			}) {
				return
			}
		}
	}))
}

// usual makes an instance with a small file and one of many extents.
func (w *world) usual(number byte) *instance {
	w.t.Helper()
	return w.layer(number,
		tartest.File{Name: "a", Type: '0', Mode: 0o644, Data: tartest.Pattern(5000, uint64(number))},
		tartest.File{Name: "large", Type: '0', Mode: 0o644, Data: tartest.Pattern(1<<20, uint64(number)+100)},
	)
}

// ReadAt implements ondemand.Source.
func (in *instance) ReadAt(ctx context.Context, p []byte, off int64, _ int, _ func(int)) error {
	in.mu.Lock()
	in.asked++
	closed := in.closed
	in.mu.Unlock()
	if closed != nil {
		select {
		case <-closed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	_, err := bytes.NewReader(in.data).ReadAt(p, off)
	return err
}

// block lets nothing come from the source until release is called.
func (in *instance) block() (release func()) {
	in.mu.Lock()
	defer in.mu.Unlock()
	closed := make(chan struct{})
	in.closed = closed
	return func() {
		in.mu.Lock()
		defer in.mu.Unlock()
		if in.closed == closed {
			in.closed = nil
			close(closed)
		}
	}
}

func (in *instance) requests() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.asked
}

func (in *instance) completed() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.complete
}

// in describes the instance in a directory.
func (in *instance) in(dir string) Layer {
	return Layer{Name: in.name, ID: in.id, Dir: dir, Digest: "layer " + in.name[:2], Source: in, Partial: in.completed() == 0, Check: in.check, Complete: func() error {
		in.mu.Lock()
		defer in.mu.Unlock()
		in.complete++
		return nil
	}}
}

// decoder is an index.Decoder as the engine wants it.
type decoder struct{ index.Decoder }

func (d *decoder) Open(kind uint8, off int64, compressed []byte, more func(int) int) error {
	return d.Decoder.Open(index.Codec(kind), index.Range{Start: off, End: off + int64(len(compressed))}, compressed, more)
}

func (d *decoder) Decode(x blob.Extent, dst []byte) error {
	return d.Decoder.Decode(index.Extent{
		Length: int64(x.Length), Skip: x.InnerOffset, Digest: x.Digest, Blob: index.Range{Start: x.BlobOffset, End: x.BlobOffset + int64(x.BlobLength)},
	}, dst)
}

// daemon is a Watcher that runs, as that of a process.
type daemon struct {
	*Watcher
	w    *world
	stop func()
	run  func() // what goes on after Connect
}

// daemon starts one, which has what the keeper holds; it ends with the test.
func (w *world) daemon() *daemon {
	w.t.Helper()
	d := w.prepare()
	must(w.t, d.Connect(context.WithoutCancel(w.t.Context())))
	d.run()
	return d
}

// prepare makes one that is not connected and does not run yet.
func (w *world) prepare() *daemon {
	w.t.Helper()
	log := slog.New(slog.NewTextHandler(w.t.Output(), nil))
	engine := ondemand.New(ondemand.Options{Quiet: time.Millisecond, NewDecoder: func() ondemand.Decoder { return new(decoder) }, Log: log})
	syncer := blob.NewSyncer(func(_ *blob.Blob, err error) { w.t.Error(err) })
	d := &daemon{w: w, Watcher: New(Options{
		Engine: engine, Syncer: syncer, Keeper: w.address, Log: log,
		Describe: w.describe,
		Cache: CacheOptions{
			Dir: filepath.Join(w.root, "fscache"), Find: func(instance string) string { return filepath.Join(w.root, "layers", instance) },
			TrialMeta: []byte("meta of the trial"), TrialData: []byte("data"),
		},
		Gone: func(dir string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.gone = append(w.gone, dir)
		},
		Secret: func(f *os.File) {
			if f == nil {
				return
			}
			defer f.Close()
			w.secret, _ = io.ReadAll(io.NewSectionReader(f, 0, 1000))
		},
	})}
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	var running sync.WaitGroup
	running.Go(func() { syncer.Run(ctx) })
	running.Go(func() { must(w.t, engine.Run(ctx)) })
	watching, cancelWatch := context.WithCancel(ctx)
	var watch sync.WaitGroup
	d.run = func() {
		watch.Go(func() {
			if err := d.Run(watching); err != nil {
				w.t.Error(err)
			}
		})
	}
	d.stop = sync.OnceFunc(func() {
		cancelWatch()
		watch.Wait()
		if err := d.Close(); err != nil {
			w.t.Error(err)
		}
		cancel()
		running.Wait()
	})
	w.t.Cleanup(d.stop)
	return d
}

func (w *world) describe(dir string) (Layer, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, dir)
	if in, ok := w.known[filepath.Base(dir)]; ok {
		return in.in(dir), nil
	}
	meta, err := os.ReadFile(filepath.Join(dir, metaName))
	if err != nil {
		return Layer{}, err
	}
	for _, in := range w.known { // of an orphan
		if bytes.Equal(meta[1024+48:][:16], in.id[:16]) { // the UUID in the superblock
			return in.in(dir), nil
		}
	}
	return Layer{}, fmt.Errorf("what is in %s is not known", dir)
}

func (w *world) isGone(dir string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Contains(w.gone, dir)
}

// mountFiles mounts a meta image with a data blob until the test ends.
func (w *world) mountFiles(meta, data string) (root string, err error) {
	w.t.Helper()
	root, err = os.MkdirTemp(filepath.Join(w.root, "m"), "")
	must(w.t, err)
	if err := unix.Mount(meta, root, "erofs", unix.MS_RDONLY, "device="+data); err != nil {
		return "", err
	}
	w.t.Cleanup(func() { w.unmount(root) })
	return root, nil
}

// unmount removes a mount that may be in use.
func (w *world) unmount(root string) {
	w.t.Helper()
	if err := unix.Unmount(root, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		w.t.Error(err)
	}
}

// mount mounts an instance as a snapshotter does.
func (d *daemon) mount(in *instance) (root string) {
	d.w.t.Helper()
	how, err := d.Mount(d.w.t.Context(), in.name)
	must(d.w.t, err)
	root, err = d.w.mountFiles(filepath.Join(in.dir, metaName), filepath.Join(in.dir, blob.DataName))
	must(d.w.t, err)
	if how != nil && how.Check != nil {
		must(d.w.t, how.Check(root))
	}
	return root
}

// open makes an instance known.
func (d *daemon) open(in *instance) {
	d.w.t.Helper()
	must(d.w.t, d.Open(in.in(in.dir)))
}

// report is that of an instance, nil if it is not open.
func (d *daemon) report(in *instance) *Report {
	for _, r := range d.Reports() {
		if r.Name == in.name {
			return &r
		}
	}
	return nil
}

// reads expects all files of an instance below root.
func (in *instance) reads(root string) {
	in.w.t.Helper()
	for name, want := range in.files {
		got, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			in.w.t.Errorf("%s: %v", name, err)
		} else if !bytes.Equal(got, want) {
			in.w.t.Errorf("%s: %d bytes, other than the %d it has", name, len(got), len(want))
		}
	}
}

// orphan does what a layer store does with an instance that is removed, and returns where its files are then.
func (d *daemon) orphan(in *instance) string {
	d.w.t.Helper()
	to := filepath.Join(d.w.root, "orphans", "of-"+in.name[:2])
	must(d.w.t, os.Rename(in.dir, to))
	d.Left(in.name, to)
	return to
}
