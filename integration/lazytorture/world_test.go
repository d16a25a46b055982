package lazytorture

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter/index/estargz"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// options are how worlds differ.
type options struct {
	habits
	// registry, if it is set, is where layers come from, and deadline the time after which reads may fail.
	registry *registry
	deadline time.Duration
	// fscache has layers mounted over the kernel's cache of files.
	fscache bool
	// patience is the keeper's; 0 is its own.
	patience time.Duration
	// kills and passes of each reader are how many there are at least.
	kills, passes int
}

// world is a filesystem with a layer store, a keeper, and lives.
type world struct {
	t      *testing.T
	ctx    context.Context
	name   string
	dir    string // of the filesystem
	layers []layer
	store  *layerstore.Store
	keeper string
	lives  *lives
	// keeperProcess is the last keeper that was started.
	keeperProcess *exec.Cmd
	begun         atomic.Int64 // readers that have read something
	failing       atomic.Bool  // reads may fail
	log           string
	o             options

	mu       sync.Mutex
	complete map[layerstore.ID]bool
	reads    map[string]int64 // by ways, as the following
	passes   map[string]int
	longest  time.Duration         // that a read has waited
	orphans  int                   // that were served
	slow     map[uint64][]slowRead // by layers, of this round
	expired  int                   // reads that failed after the deadline
	wrongs   int                   // reads that went wrong
}

func newWorld(t *testing.T, filesystem string, layers []layer, options options) *world {
	t.Helper()
	w := &world{
		t: t, ctx: t.Context(), name: filesystem, layers: layers, complete: map[layerstore.ID]bool{}, reads: map[string]int64{},
		passes: map[string]int{}, slow: map[uint64][]slowRead{}, o: options,
	}
	w.dir = mountFilesystem(t, filesystem)
	dir := t.TempDir()
	w.keeper, w.log = filepath.Join(dir, "keeper.sock"), filepath.Join(dir, "log")
	log, err := os.OpenFile(w.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	must(t, err)
	t.Cleanup(func() {
		log.Close()
		if b, err := os.ReadFile(w.log); t.Failed() && err == nil {
			t.Logf("the log of %s:\n%s", filesystem, b[max(0, len(b)-20_000):])
		}
	})

	o := lifeOptions{Keeper: w.keeper, Blobs: map[string]string{}, Delay: true, Patience: options.patience}
	root := filepath.Join(w.dir, "root")
	if options.fscache {
		o.Cache, o.Layers = filepath.Join(w.dir, cacheIn), filepath.Join(root, "layers")
	}
	for _, l := range layers {
		o.Blobs[l.Digest.String()] = l.path
	}
	if options.registry != nil {
		o.Registry, o.Deadline = options.registry.addr(), options.deadline
	}
	w.lives = newLives(options.habits, o, log, func(err error) { t.Errorf("%v", err) })
	w.lives.heard = w.heard
	w.startKeeper()
	w.store, err = layerstore.Open(root, layerstore.Options{
		Log:  slog.New(slog.NewTextHandler(io.Discard, nil)),
		Left: func(inst layerstore.Instance, dir string) { w.lives.left(string(inst.ID), dir) },
	})
	must(t, err)
	t.Cleanup(func() { must(t, w.store.Close()) })
	return w
}

func (w *world) startKeeper() {
	w.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = w.lives.o.env("keeper"), w.lives.log
	out, err := cmd.StdoutPipe()
	must(w.t, err)
	in, err := cmd.StdinPipe()
	must(w.t, err)
	must(w.t, cmd.Start())
	w.t.Cleanup(func() { in.Close(); cmd.Wait() })
	w.keeperProcess = cmd
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		w.t.Fatalf("the keeper says %q: %v", line, err)
	}
}

func (w *world) startLives() {
	ctx, stop := context.WithCancel(context.Background())
	go w.lives.run(ctx)
	w.t.Cleanup(func() { stop(); <-w.lives.over })
}

// heard takes what the lives say of instances.
func (w *world) heard(what string, words []string) {
	switch what {
	case "complete":
		id := layerstore.ID(words[0])
		inst, err := w.store.Get(id)
		if err == nil {
			err = w.store.SetComplete(inst)
		}
		if err != nil && !errdefs.IsNotFound(err) {
			w.t.Error(err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.complete[id] = true
	case "gone": // what the keeper holds tells, too
	default:
		w.t.Errorf("a life says %q %q", what, words)
	}
}

// instance is one of a round.
type instance struct {
	layer
	id   layerstore.ID
	dir  string
	root string // where it is mounted
	pin  layerstore.Pin
}

// round makes a fresh instance of each layer and has it read, in all ways at once, while lives are ended. The last instance is taken out of
// the store meanwhile, but over the kernel's cache, where what is mounted stays. Then a life is spared, and everything is read once more: what
// has stayed in the store is complete then, and is read without anybody who answers. In the end the keeper must hold nothing.
func (w *world) round() {
	w.t.Helper()
	var all []*instance
	targets := map[string]string{}
	for i, l := range w.layers {
		in := w.make(l, filepath.Join(w.dir, fmt.Sprint("mount", i)))
		all = append(all, in)
		targets[in.root] = in.dir
	}
	defer func() {
		for _, in := range all {
			_ = unix.Unmount(in.root, unix.MNT_DETACH) // it is there if the round was cut short
		}
	}()
	must(w.t, w.lives.mount(targets))

	var readers sync.WaitGroup
	for _, in := range all {
		for _, way := range []string{"random", "mmap", "sequential", "exec"} {
			readers.Go(func() { w.reader(way, in) })
		}
	}
	stay := all
	if !w.o.fscache {
		time.Sleep(rand.N(time.Second))
		stay = all[:len(all)-1]
		w.takeOut(all[len(all)-1])
	}
	readers.Wait()
	if w.t.Failed() {
		return
	}
	w.settle(all, stay)
}

// takeOut takes an instance out of the store that is mounted.
func (w *world) takeOut(in *instance) {
	w.lives.connecting.Lock()
	defer w.lives.connecting.Unlock()
	in.pin.Release()
	if err := w.store.Discard(in.id); err != nil {
		w.t.Error(err)
	}
}

// settle has the instances of a round end. Some stay in the store until then.
func (w *world) settle(all, stay []*instance) {
	w.t.Helper()
	w.setCalm(true)
	mounted := all
	if w.o.fscache {
		mounted = w.remount(all)
	}
	for _, in := range mounted[:1] {
		w.reader("alone", in)
		within(w.t, patient, "instance is complete", func() error {
			err := w.isComplete(in)
			if err != nil && w.o.registry != nil { // it has just begun to be good
				w.reader("alone", in)
			}
			return err
		})
		w.reader("alone", in)
	}
	for _, in := range mounted {
		must(w.t, unix.Unmount(in.root, 0))
	}
	within(w.t, patient, "keeper holds nothing", func() error {
		report, err := keeper.Status(w.ctx, w.keeper)
		if err == nil && len(report.Names) > 0 {
			err = fmt.Errorf("it holds %q", report.Names)
		}
		return err
	})
	if w.o.fscache {
		w.emptiesCache() // or the next round would find everything there
	}
	w.setCalm(false)
	w.checkFailures()
	for _, in := range stay {
		w.discard(in)
	}
}

// remount unmounts instances, and mounts the first of them again. What a life had not recorded yet when it was killed is missing again; but
// the kernel has it in its cache, and asks for it only when it is mounted with an empty one.
func (w *world) remount(all []*instance) (mounted []*instance) {
	w.t.Helper()
	for _, in := range all {
		must(w.t, unix.Unmount(in.root, 0))
	}
	w.emptiesCache()
	must(w.t, w.lives.mount(map[string]string{all[0].root: all[0].dir}))
	return all[:1]
}

// setCalm has nothing happen to lives and requests, or again what is to happen.
func (w *world) setCalm(calm bool) {
	if w.o.registry != nil {
		w.o.registry.calm.Store(calm)
	}
	w.lives.setSpare(calm)
}

func (w *world) isComplete(in *instance) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.complete[in.id] {
		return errors.New("data are missing")
	}
	return nil
}

// discard takes away an instance, and what has left the store before.
func (w *world) discard(in *instance) {
	w.t.Helper()
	in.pin.Release()
	must(w.t, w.store.Discard(in.id))
	orphans, err := w.store.Orphans()
	must(w.t, err)
	for _, dir := range orphans {
		must(w.t, w.store.DiscardDir(dir))
	}
	must(w.t, w.store.DeleteDiscarded())
	w.mu.Lock()
	defer w.mu.Unlock()
	w.orphans += len(orphans)
	clear(w.complete)
}

// make makes an instance, and where it is to be mounted.
func (w *world) make(l layer, root string) *instance {
	w.t.Helper()
	id := layerstore.LazyID(l.Digest, l.Annotations)
	_, pin, err := w.store.ImportLazy(w.ctx, id, l.Digest, func(context.Context) (layerstore.Indexed, error) {
		blob, err := os.Open(l.path)
		if err != nil {
			return layerstore.Indexed{}, err
		}
		defer blob.Close()
		idx, err := estargz.Open(index.Layer{Annotations: l.Annotations, Size: l.Size}, blob, index.Limits{})
		return layerstore.Indexed{Index: idx, Lazy: layerstore.Lazy{
			Images: []string{"origin/layer"}, MediaType: l.MediaType, Size: l.Size, Annotations: l.Annotations, DiffID: l.DiffID,
		}}, err
	})
	must(w.t, err)
	must(w.t, os.MkdirAll(root, 0o700))
	return &instance{layer: l, id: id, dir: w.store.Dir(id), root: root, pin: pin}
}

// report says what was done, and fails if it was too little, or if the log tells of errors.
func (w *world) report(took time.Duration) {
	w.t.Helper()
	l := w.lives
	l.mu.Lock()
	defer l.mu.Unlock()
	n := max(l.killed+l.others, 1)
	w.t.Logf("%s: %d kills and %d other ends in %v; inherited %d of %d events (%d answered late); passes %v, reads %v; longest wait %v; %d orphans; "+
		"ready after %v, first answer %v later", w.name, l.killed, l.others, took.Round(time.Second), l.counts.inherited, l.counts.asked, l.counts.late, w.passes,
		w.reads, w.longest, w.orphans, (l.starting / time.Duration(n)).Round(time.Millisecond),
		(l.asking / time.Duration(n)).Round(time.Millisecond))
	if l.counts.refused+l.counts.notices > 0 {
		w.t.Errorf("%d events were refused by the kernel, %d lost", l.counts.refused, l.counts.notices)
	}
	if float64(l.counts.inherited) < inheritedShare*float64(l.killed) {
		w.t.Errorf("%d kills left %d events: too few to have tested anything", l.killed, l.counts.inherited)
	}
	log, err := os.ReadFile(w.log)
	must(w.t, err)
	for _, line := range strings.Split(string(log), "\n") {
		if line != "" && !strings.Contains(line, "level=INFO") && (w.o.registry == nil || !strings.Contains(line, "level=WARN")) {
			w.t.Errorf("the log says: %s", line)
			break
		}
	}
	if r := w.o.registry; r != nil {
		w.t.Logf("%d reads failed after the deadline of %v; faults: %v", w.expired, w.o.deadline, r.proxy.Counts())
	}
}
