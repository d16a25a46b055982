package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/erofs-snapshotter/erofs-snapshotter/config"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/watch"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/lazy"
)

// demand joins what loading on demand consists of: which layers (package lazy), who answers the kernel (watch, ondemand), where bytes come
// from (registry), and where instances are (layerstore).
type demand struct {
	root    string
	limits  converter.Limits
	from    sources
	client  *registry.Client // nil if layers are not pulled from registries
	log     *slog.Logger
	engine  *ondemand.Engine
	syncer  *blob.Syncer
	watcher *watch.Watcher
	loader  *lazy.Loader // nil if layers are not pulled from registries
	enabled bool         // new layers are loaded on demand, too
	mode    string       // lazy.mode
	// impossible is why nothing can be loaded on demand here, nil if it can.
	impossible error
	// late has begin wait until a layer is to be loaded on demand, if there is none so far.
	late      bool
	beginning sync.Mutex
	begun     bool
	connects  bool // to a keeper
	// unsettled says that it is not known yet which mounts are poisoned: their files are not opened, or what is filled would be taken for right.
	unsettled atomic.Bool

	keeperAddress string

	keeperReports

	stop    context.CancelFunc
	closed  bool
	running sync.WaitGroup

	check bool // layers are checked, and filled, in the background

	ready     chan struct{} // closed when instances is set, or never will be
	instances instances     // nil if everything ended before
}

// instances is where they are: a Snapshotter's, or a layer store's alone.
type instances interface {
	List() []layerstore.Instance
	Get(id layerstore.ID) (layerstore.Instance, error)
	Dir(id layerstore.ID) string
	SetComplete(inst layerstore.Instance) error
	SetVerified(id layerstore.ID, diffID digest.Digest, diffBytes int64) error
	Lose(id layerstore.ID)
	// RenewPoisoned is called when it has become known for which instances somebody answers, if that was not so at the start.
	RenewPoisoned(ctx context.Context) error
	// CacheLost is called when mounts over the kernel's cache have died.
	CacheLost(ctx context.Context) error
	// Mismatched says that a layer is not what its image says.
	Mismatched(ctx context.Context, id layerstore.ID, cause error)
	// Gone deletes an orphan.
	Gone(dir string)
}

// served are those of a Snapshotter.
type served struct {
	*layerstore.Store
	sn *snapshotter.Snapshotter
}

func (s served) Mismatched(ctx context.Context, id layerstore.ID, cause error) {
	s.sn.Mismatched(ctx, id, cause)
}
func (s served) Gone(dir string)                         { s.sn.Gone(dir) }
func (s served) RenewPoisoned(ctx context.Context) error { return s.sn.RenewPoisoned(ctx) }
func (s served) CacheLost(ctx context.Context) error     { return s.sn.CacheLost(ctx) }

// leastQuiet is what no delay is: 0 is the default for the engine, which looks as often as the delay is long.
const leastQuiet = 10 * time.Millisecond

// newDemand makes it of the configuration. It connects to nothing.
func newDemand(cfg config.Config, from sources, log *slog.Logger) *demand {
	d := &demand{
		enabled: cfg.Lazy.Enabled && cfg.Lazy.Mode != modeEager && from.client != nil, mode: cfg.Lazy.Mode,
		root: cfg.Root, limits: limits(cfg.Limits), from: from, client: from.client, log: log, ready: make(chan struct{}), stop: func() {},
		check: cfg.Lazy.Background, keeperAddress: cfg.KeeperAddress(),
	}
	d.syncer = blob.NewSyncer(func(_ *blob.Blob, err error) {
		log.Error("data loaded on demand not put on stable storage", "cause", err)
	})
	d.engine = ondemand.New(ondemand.Options{
		Deadline:       cfg.Lazy.Deadline.Duration,
		Parallel:       cfg.Registry.Connections,
		Quiet:          max(cfg.Lazy.BackgroundDelay.Duration, leastQuiet),
		BackgroundRate: cfg.Registry.BackgroundRate.Bytes,
		NewDecoder:     func() ondemand.Decoder { return new(layerstore.Decoder) },
		Log:            log,
	})
	var start func(context.Context) error
	if mayStartKeeper(cfg) {
		start = func(ctx context.Context) error { return d.startKeeper(ctx, cfg.Keeper.Patience.Duration) }
	}
	d.watcher = watch.New(watch.Options{
		Engine: d.engine, Syncer: d.syncer, Keeper: cfg.KeeperAddress(), Start: start, Log: log,
		Describe: func(dir string) (watch.Layer, error) {
			inst, err := layerstore.ReadInstance(dir)
			if err != nil {
				return watch.Layer{}, err
			}
			return d.describe(inst, dir)
		},
		Cache:  cacheOptions(cfg),
		Secret: d.importSecret, Connected: from.noteLearned, Settled: d.settled, Lost: d.lost,
		Gone: func(dir string) {
			if all, err := d.whenReady(); err == nil { // otherwise the next process finds it
				all.Gone(dir)
			}
		},
	})
	if from.client != nil {
		d.loader = lazy.New(lazy.Options{
			Registry: paced{from.client}, Off: !d.enabled, MinLayerBytes: cfg.Lazy.MinLayerSize.Bytes, Trust: cfg.Lazy.Trust, Ready: d.canWatch, Log: log,
			Made: d.made,
		})
	}
	return d
}

// made begins to fill an instance that was made or found.
func (d *demand) made(inst layerstore.Instance, dir string) error {
	if d.unsettled.Load() {
		return errors.New("it is just being found out which layers somebody answers for")
	}
	layer, err := d.describe(inst, dir)
	if err != nil {
		return err
	}
	return d.watcher.Open(layer)
}

// resume goes on with the layers that are not complete, or not checked.
func (d *demand) resume(all instances) {
	d.instances = all
	close(d.ready)
	d.openAll()
}

// resumed says whether resume was called.
func (d *demand) resumed() bool {
	select {
	case <-d.ready:
		return d.instances != nil
	default:
		return false
	}
}

// whenReady waits for the instances. There is an error if this process ends before it has them.
func (d *demand) whenReady() (instances, error) {
	if <-d.ready; d.instances == nil {
		return nil, errors.New("this process ends before it knows its layers")
	}
	return d.instances, nil
}

// settled goes on with them when the keeper has answered at last, or is certainly gone.
func (d *demand) settled(ctx context.Context) error {
	if err := d.instances.RenewPoisoned(ctx); err != nil {
		return err
	}
	d.unsettled.Store(false)
	d.openAll()
	return nil
}

// lost sees to it that what is mounted from now on does not die with the kernel's cache that was lost.
func (d *demand) lost(ctx context.Context) error {
	all, err := d.whenReady()
	if err == nil {
		err = all.CacheLost(ctx)
	}
	if err != nil { // the next process does it
		d.log.Error("mounts over a cache that is lost are not all taken away: containers that use them cannot read; restart the daemon", "cause", err)
	}
	return nil
}

// openAll opens the layers that are not complete, or not checked. While it is not known which of them the keeper holds, it opens none.
func (d *demand) openAll() {
	if d.watcher.Unsure() != nil {
		return
	}
	all := d.instances
	for _, inst := range all.List() {
		if inst.Lazy == nil || !inst.Lazy.Partial && (!inst.Lazy.Verified.IsZero() || inst.Lazy.Mismatch != "") {
			continue
		}
		if inst.Lazy.Partial && !d.watcher.Watches(string(inst.ID)) {
			// An attendant poisons nothing. Once such a layer is complete nobody could tell any more.
			if alive, err := d.watcher.Alive(all.Dir(inst.ID)); err == nil && alive {
				d.log.Error("nobody has answered for a layer that is mounted: it is left alone until the next mount command or start of the daemon",
					"instance", inst.ID, "layer", inst.Layer)
				continue
			}
		}
		layer, err := d.describe(inst, all.Dir(inst.ID))
		if err == nil {
			err = d.watcher.Open(layer)
		}
		switch {
		case errors.Is(err, blob.ErrUnusable):
			d.log.Error("data of a lazy layer are damaged: it is made again", "instance", inst.ID, "layer", inst.Layer, "cause", err)
			all.Lose(inst.ID)
		case err != nil:
			d.log.Error("lazy layer cannot be served", "instance", inst.ID, "layer", inst.Layer, "cause", err)
		}
	}
}

// run does what goes on until ctx ends.
func (d *demand) run(ctx context.Context) error {
	if d.impossible != nil && !d.connects {
		<-ctx.Done()
		return nil
	}
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return d.watcher.Run(ctx) })
	all.Go(func() error { return d.keepSecrets(ctx) })
	return all.Wait()
}

// close leaves everything to the keeper. It may be called again.
func (d *demand) close() error {
	if !d.closed && !d.resumed() {
		close(d.ready) // the watcher waits for those who wait for it
	}
	d.closed = true
	err := d.watcher.Close()
	d.stop()
	d.running.Wait()
	return err
}

// describe says what the watcher must know of an instance.
func (d *demand) describe(inst layerstore.Instance, dir string) (watch.Layer, error) {
	if inst.Lazy == nil {
		return watch.Layer{}, fmt.Errorf("layer instance %s was not made from an index", inst.ID)
	}
	layer := watch.Layer{
		Name: string(inst.ID), ID: inst.ID.Bytes(), Dir: dir, Digest: inst.Layer.String(), Origin: originOf(inst.Lazy.Images), PrefetchUntil: inst.Lazy.Prefetch,
		Partial: inst.Lazy.Partial,
		Source:  layerSource{demand: d, inst: inst},
		Complete: func() error {
			all, err := d.whenReady()
			if err != nil {
				return err
			}
			return all.SetComplete(inst)
		},
	}
	if d.check && d.loader != nil && inst.Lazy.Verified.IsZero() && inst.Lazy.Mismatch == "" {
		layer.Check = func(ctx context.Context, pace ondemand.Pace, put func(int, []byte) error) error {
			return d.checkLayer(ctx, inst, pace, put)
		}
	}
	return layer, nil
}

// originOf is the host of the first reference.
func originOf(images []string) string {
	if len(images) == 0 {
		return ""
	}
	host, _, _ := strings.Cut(images[0], "/")
	return host
}

// checkLayer reads the whole layer of an instance, completes it, and notes what was found.
func (d *demand) checkLayer(ctx context.Context, inst layerstore.Instance, pace ondemand.Pace, put func(int, []byte) error) error {
	select {
	case <-d.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	all, err := d.whenReady()
	if err != nil {
		return err
	}
	sums, err := d.loader.Check(ctx, inst, d.limits, pace.Wait, put)
	switch {
	case errors.Is(err, lazy.ErrMismatch):
		all.Mismatched(ctx, inst.ID, err)
		return nil
	case err != nil:
		return err
	}
	d.log.Info("lazy layer checked", "instance", inst.ID, "layer", inst.Layer, "bytes", sums.BlobBytes)
	return all.SetVerified(inst.ID, sums.DiffID, sums.DiffBytes)
}

// layerSource reads the blob of an instance's layer from the first image that has it.
type layerSource struct {
	demand *demand
	inst   layerstore.Instance
}

// images are the references under which the layer was pulled, also since it was opened.
func (s layerSource) images() []string {
	if s.demand.resumed() {
		if inst, err := s.demand.instances.Get(s.inst.ID); err == nil {
			return inst.Lazy.Images
		}
	}
	return s.inst.Lazy.Images
}

// ReadAt implements ondemand.Source.
func (s layerSource) ReadAt(ctx context.Context, p []byte, off int64, attempt int, came func(int)) error {
	if s.demand.client == nil {
		return errors.New("remote.enabled is false: nothing is fetched from registries")
	}
	var errs []error
	there := 0
	for _, image := range s.images() {
		before := there
		err := s.demand.client.ReadInto(registry.Again(ctx, attempt), image, s.descriptor(), p[before:], off+int64(before), func(n int) {
			there = before + n
			came(there)
		})
		if err == nil || ctx.Err() != nil {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (s layerSource) descriptor() ocispec.Descriptor { return lazy.Descriptor(s.inst) }
