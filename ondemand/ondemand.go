// Package ondemand fetches the contents of lazy layers at the moment somebody reads them: the engine between a transport, which brings
// the kernel's requests, and a registry. It knows neither: a transport calls Ready and Fill of a Layer, bytes come from its Source, and
// go into its data blob (package ondemand/blob).
//
//	transport ──Ready, Fill──► Layer ──► which extents are absent ──► requests ──Source──► bytes ──Decoder──► verified ──► blob
//
// An extent is the unit of everything: it is verified alone, and it is present or absent.
//
//	absent ──planned──► on its way ──verified, written──► present        failed: absent again, and those who wait for it get the error
//
// It is on its way at most once, whoever asks for it; all that want it wait for the same request. Bytes reach the blob only after the
// Decoder has compared their digest. Corrupt ones are asked for again, of another host if the Source has one.
//
// # Requests
//
// Absent extents that are close to each other in the layer's blob are fetched with one request: 128 KiB from where a fault begins and 32 KiB
// from before that, also when it needs less. Who reads half a megabyte on end is a stream, for which up to two windows of 4 MiB are fetched
// ahead, in requests of up to 1 MiB. Extents are decoded and written as their bytes come, those of the fault first, and it waits for no
// others.
//
// There are three classes of requests. In everything that is scarce the first goes first, and the others leave some of it to it:
//
//	fault     a reader waits for it
//	ahead     a reader will want it, if it goes on as it did
//	prefetch  the author of the image says that it will be wanted
//
// A request of a lower class is raised when a reader begins to wait for one of its extents. Nothing is planned before it can be sent, so
// low classes have no queue of which something would have to be taken back.
//
// Scarce are: requests at the same time to one origin (Options.Parallel), of which a layer may have three quarters; memory for what comes
// (Options.Memory), of which each origin may have one request in any case; processors to decode with. So an origin that is dead takes
// neither requests nor all memory from the others, and a blob that does not come leaves something to other blobs of its origin.
//
// # Background fill
//
// A layer may bring a function that streams all of it and checks the whole (LayerOptions.Complete). The engine decides when it runs: one
// layer at a time, after no fault had to fetch for a while, of any layer if that is not too long in coming, at a bounded rate; without a
// bound, and sooner, when the layer is read hard. It pauses while readers wait, for any layer.
//
// # Errors
//
// A fault ends with an error when one of its extents could not be fetched, verified or written, or after Options.Deadline, while the
// request may go on: who asks later waits for the same one. Nothing is refused because of an earlier failure, but after one
// the requests of a layer have a pause, 100 ms to 5 s, until one succeeds.
//
// Nothing of the engine survives the process; what is present does. All goroutines belong to Run; a layer without work has none.
// Source, Decoder, Complete and Log must not need anything that reads a layer: they would wait for themselves.
package ondemand

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
)

var (
	// ErrClosed says that the layer was closed, or that the engine has ended. It says nothing about the data: a fault that gets it can be
	// left to a successor.
	ErrClosed = errors.New("closed")
	// ErrDeadline says that a fault was not served in time. Its data may still come.
	ErrDeadline = errors.New("not served within the deadline")
)

const (
	defaultDeadline = 60 * time.Second
	// defaultParallel is what ondemand/registry reads from a host at the same time.
	defaultParallel = 4
	// defaultMemory is eight streams at full speed.
	defaultMemory = 64 << 20
	defaultQuiet  = 5 * time.Second
)

// Source reads ranges of the compressed blob of one layer. Safe for concurrent use.
type Source interface {
	// ReadAt fills p with the bytes from off on, or returns an error. attempt counts from 0; a later one says that what came with those
	// before was corrupt, so that another host may be of more use. It may call came with how many bytes of p are there, which do not
	// change any more, to have them used before the others come. It ends by itself when nothing comes any more, and at once with ctx.
	ReadAt(ctx context.Context, p []byte, off int64, attempt int, came func(n int)) error
}

// Decoder makes the bytes of extents of ranges of a blob. It is used by one goroutine at a time, and for all layers.
type Decoder interface {
	// Open takes the bytes of the range at off, which it may use until the next call. more is nil, or not all of them are there: then it
	// waits for more than the first have, and returns how many are, which is no more than have if the rest does not come.
	Open(kind uint8, off int64, compressed []byte, more func(have int) int) error
	// Decode fills dst, of x.Length bytes, with an extent of the range and compares the digest. An error means that the bytes are
	// corrupt; others of the range are asked for all the same, and one that cannot be better should fail at once. Extents of a range come
	// in the order of the table, mostly.
	Decode(x blob.Extent, dst []byte) error
}

// Options configure an Engine. All but NewDecoder may be zero.
type Options struct {
	// NewDecoder makes the Decoders, about one for each processor.
	NewDecoder func() Decoder
	// Deadline is how long a fault may take before it fails; 0 is 60 s.
	Deadline time.Duration
	// Parallel is how many requests are under way to one origin; 0 is 4.
	Parallel int
	// Memory bounds the bytes of requests that are under way or wait to be decoded; 0 is 64 MiB. Beyond it each origin may have one
	// request, and each processor one extent that is being decoded.
	Memory int64
	// Quiet is how long no fault of a layer had to fetch before its background fill begins; 0 is 5 s.
	Quiet time.Duration
	// BackgroundRate bounds all background fills together, in compressed bytes/s; 0 is no bound.
	BackgroundRate int64
	// Log gets what no caller is told: corrupt bytes, background fills that failed; nil discards.
	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Deadline <= 0 {
		o.Deadline = defaultDeadline
	}
	if o.Parallel <= 0 {
		o.Parallel = defaultParallel
	}
	if o.Memory <= 0 {
		o.Memory = defaultMemory
	}
	if o.Quiet <= 0 {
		o.Quiet = defaultQuiet
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Engine serves the faults of all layers. Safe for concurrent use.
type Engine struct {
	options    Options
	memory     *gate // bytes
	processors *gate
	tools      sync.Pool // of *tool
	buffers    buffers
	readers    *readers
	bucket     *bucket
	places     *placesCache
	ended      chan struct{} // closed when Run begins to end
	wakeFills  chan struct{}

	mu      sync.Mutex      // taken after that of a layer; nobody waits for anything with it held
	run     context.Context // of the work; nil before Run
	early   []func(context.Context)
	stopped bool
	layers  map[*Layer]struct{}
	origins map[string]*origin
	gone    LayerStats // counts of layers that were closed

	busy sync.WaitGroup // what Run has started
}

// origin is where layers come from that share connections.
type origin struct {
	slots  *gate  // requests
	loaded holder // of memory
	layers int    // guarded by the mu of the engine
}

// New returns an engine. Faults wait until Run is called.
func New(o Options) *Engine {
	o = o.withDefaults()
	return &Engine{
		options:    o,
		memory:     newGate(o.Memory, o.Memory/4, o.Memory/2),
		processors: newGate(int64(runtime.GOMAXPROCS(0)), 0, 0),
		tools:      sync.Pool{New: func() any { return &tool{decoder: o.NewDecoder()} }},
		readers:    newReaders(),
		bucket:     &bucket{rate: o.BackgroundRate},
		places:     &placesCache{},
		ended:      make(chan struct{}),
		wakeFills:  make(chan struct{}, 1),
		layers:     map[*Layer]struct{}{},
		origins:    map[string]*origin{},
	}
}

// Run does the work until ctx ends, and returns nil after the last request and background fill have ended. Faults that wait then get
// ErrClosed, and no other error because of that. It may be called once.
func (e *Engine) Run(ctx context.Context) error {
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	e.mu.Lock()
	e.run = work
	for _, do := range e.early {
		e.busy.Go(func() { do(work) })
	}
	e.early = nil
	e.mu.Unlock()

	e.scheduleFills(ctx)

	e.mu.Lock()
	e.stopped = true
	e.mu.Unlock()
	close(e.ended)
	cancel(ErrClosed)
	e.busy.Wait()
	return nil
}

// start runs do in a goroutine of Run's.
func (e *Engine) start(do func(context.Context)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.stopped:
	case e.run == nil:
		e.early = append(e.early, do)
	default:
		ctx := e.run
		e.busy.Go(func() { do(ctx) })
	}
}

// LayerOptions say what a layer is, besides its blob.
type LayerOptions struct {
	// Name is for errors and the log: the digest of the layer.
	Name string
	// Source is where its bytes come from.
	Source Source
	// Origin names what the layer shares its connections with, as the host of a registry; empty: with no other layer.
	Origin string
	// Attempts is how often an extent is fetched that comes corrupt; 0 is 4. Twice the number of hosts gives each two chances.
	Attempts int
	// PrefetchUntil is how many bytes from the beginning of the layer's blob are fetched before anybody asks.
	PrefetchUntil int64
	// Complete streams the whole layer, calls Put with each extent and checks what can only be checked of the whole, asking p before
	// it takes more. It runs at most once at a time, and until it has returned nil; also when all extents have come by faults meanwhile,
	// for it knows what is still to be checked. After an error it runs again later. nil: there is no background fill.
	Complete func(ctx context.Context, p Pace) error
	// Completed is called once, by a goroutine of Run's, when all extents are present; also if they were when the layer was added. It
	// may close the layer.
	Completed func()
}

// defaultAttempts gives each of two hosts two chances.
const defaultAttempts = 4

// Add makes a layer ready to be filled into b, which the caller closes after the layer.
func (e *Engine) Add(b *blob.Blob, o LayerOptions) *Layer {
	if o.Attempts <= 0 {
		o.Attempts = defaultAttempts
	}
	l := &Layer{engine: e, blob: b, o: o, closing: make(chan struct{}), hard: make(chan struct{}), flying: map[int]*request{}}
	l.streams.init()
	l.quietSince = time.Now()
	e.mu.Lock()
	e.layers[l] = struct{}{}
	l.origin = e.origins[o.Origin]
	if l.origin == nil {
		parallel := int64(e.options.Parallel)
		l.origin = &origin{slots: newGate(parallel, 1, parallel/2)}
		if o.Origin != "" {
			e.origins[o.Origin] = l.origin
		}
	}
	l.origin.layers++
	e.mu.Unlock()

	l.noteComplete()
	l.Prefetch(o.PrefetchUntil)
	e.wakeFill()
	return l
}

// remove forgets a layer that was closed.
func (e *Engine) remove(l *Layer) {
	e.places.drop(l)
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, known := e.layers[l]; !known {
		return
	}
	delete(e.layers, l)
	e.gone.add(l.counts.load())
	if l.origin.layers--; l.origin.layers == 0 && e.origins[l.o.Origin] == l.origin {
		delete(e.origins, l.o.Origin)
	}
}

// all returns the layers of now.
func (e *Engine) all() []*Layer {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Keys(e.layers))
}
