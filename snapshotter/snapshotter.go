// Package snapshotter is containerd's Snapshotter on top of EROFS instances: it keeps which snapshot is which layer instance,
// mounts the instances of a chain when somebody needs them, and returns plain overlay and bind mounts.
//
// It does not convert (see converter), does not know how an instance is mounted (fsbackend), and does not serve gRPC:
// containerd's snapshotservice does that with a Snapshotter.
//
// # What is on disk
//
//	<root>/metadata.db            containerd's metadata of snapshots and our own bucket, see records.go; one writer, locked
//	       layers/<instance id>/  see layerstore
//	       m/<n>/                 the mount of an instance; n is a number that is never used again, in base 36
//	       snapshots/<id>/        upper/ and work/ of an active snapshot, upper/ of a view of nothing
//	       orphans/<random>/      lazy instances that were removed while a container reads from them, see layerstore
//	       removing/              what is being deleted, see layerstore
//
// metadata.db has some of the disk reserved ahead of its end, and what is deleted is renamed to where there is room for a name:
// Remove and Cleanup work when the disk is full.
//
// Snapshots and instances are the truth. Mounts are derived: Prepare, View and Mounts make those that are missing, so after
// a reboot containers start again without a pull.
//
// # What a snapshot refers to
//
//	active     its frozen lowers; after Bind also the instance that Commit will take
//	view       its frozen lowers
//	committed  its instance
//
// Lowers are frozen when an active snapshot or a view is made: the instances of the parents at that time, top first. What
// replaces an instance later (the conversion of a directory) changes what new snapshots get, never an old one: overlayfs
// answers ESTALE when a lower layer changes under it, and mounts of one snapshot must be the same each time.
//
// # Commit
//
// containerd calls Commit inside of its own global write transaction, so Commit never walks, copies or converts. If the
// differ made the layer's instance, that is bound. Otherwise the upper directory is renamed into a directory instance, and
// Run converts it to EROFS in the background, then points the committed snapshot at the result. The directory goes when the
// last frozen lower that names it has gone.
//
// # Remote pull
//
// Prepare of a layer that containerd has announced makes the layer ready first (package remote). Then one transaction makes a committed
// snapshot of it, with the labels of the request, and the answer is AlreadyExists; containerd finds the snapshot by its label and parent.
// Names of such snapshots are <chain ID>@<snapshot>: the name alone would not do, since containerd's namespaces may give one chain ID
// different parents.
//
// # Lazy instances
//
// An instance that was made from a layer's index (package lazy) has its metadata at once and its data when they are read, or in the
// background. While data are missing it is mounted only with somebody who answers for them (OnDemand), and when it is removed its files stay,
// as an orphan, as long as a superblock reads from them. What was mounted while nobody answered is poisoned: see poison.go. When the whole
// layer was read and is not what its image says, an instance made from the whole layer takes its place, see mismatch.go.
//
// What the image's program needs to start is read when the last layer of a pull was committed, see startup.go, as if a container ran.
//
// # Removal
//
// Remove changes metadata only and never waits for a mount. Collection (Cleanup, and a timer of Run) deletes what nothing
// refers to: directories of removed snapshots at once, instances after a grace during which the same layer may be wanted
// again. EROFS files may be deleted under a running container, which keeps the superblock; directories may not, so an upper
// directory or a directory instance that a live overlay or bind mount uses is kept until the mount has gone. With Options.Keep the layers
// used last stay longer than their grace, see keep.go.
//
// # After a crash
//
// One bolt transaction holds everything about one change, and what is on disk is arranged around it:
//
//	Prepare  snapshots/<id>/ is made last in the transaction; mounts are made after it. A crash leaves a directory that no
//	         snapshot has (deleted at start), or a snapshot whose mounts are made by the next Mounts.
//	remote   a committed snapshot that containerd has not heard of is removed when containerd collects its garbage.
//	Commit   the upper directory is renamed last in the transaction. A crash before the transaction ends leaves a directory
//	         instance that nobody refers to, and that remembers its snapshot: New gives it back.
//	collect  an instance is renamed away and its record deleted in one transaction; then its mount goes, then its files. A
//	         crash leaves a mount without an instance, or files renamed away: both are removed at start.
//	convert  a finished EROFS instance nobody refers to is collected; the directory is converted again.
//
// A power cut can, in addition, lose what was not synced: the contents of active snapshots and of directories not converted
// yet. Metadata are always synced, and so are EROFS instances, unless layerstore.Options.SyncAfter allows a moment in between: what a
// power cut takes then is made again from containerd's content store, before a snapshot with it is mounted. The rename of
// Commit is not synced, and New repeats it.
//
// # Locks
//
//	metadata.db's write transaction   all metadata; renames inside snapshots/; the creation of directories in snapshots/
//	mounting, by mount number         m/<n>: making and removing the directory and what is mounted on it. Held while mounting,
//	                                  so it is never taken inside of a transaction.
//	collecting                        one collection at a time
//
// No lock is held while a caller's function runs: Walk reads first and calls afterwards, because a read transaction inside of
// another one deadlocks as soon as bolt wants to grow the file between the two.
package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"

	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/lazy"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/remote"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/startup"
)

// defaultGrace is how long an instance that nothing refers to stays. It covers the time between "the differ made it" and
// "Commit refers to it" of a client that works without a lease, and an image that is removed and pulled again.
const defaultGrace = 30 * time.Second

// lockTimeout is how long New waits for another process to let go of metadata.db: a predecessor that is just ending.
const lockTimeout = 5 * time.Second

// Options of a Snapshotter.
type Options struct {
	// Root is the directory of everything the snapshotter keeps. It is made with mode 0700. Required.
	Root string
	// Backend mounts EROFS instances. Required.
	Backend fsbackend.Backend
	// Content is where layers are read from that must be made again, and where manifests are. Nil: no layer can be made again.
	Content remote.Content
	// Registry is where layers are fetched from that containerd announces. Nil: containerd fetches all layers.
	Registry remote.Registry
	// Lazy makes layers that are loaded on demand. Nil: all layers are pulled as a whole.
	Lazy *lazy.Loader
	// OnDemand answers for instances whose data are not all here. Nil: there must be none.
	OnDemand OnDemand
	// Stale returns the mountpoints below a directory on which mounts over a cache of files are that is not there any more. Nil: there are none.
	Stale func(dir string) ([]string, error)
	// Startup reads what a program needs to start from the tree below root, which it does not close. It is called when an image was pulled of
	// which data are missing. Nil: nothing is read before a container reads it.
	Startup func(ctx context.Context, root *os.File, p startup.Program) (startup.Report, error)
	// Log gets changes of state and what was repaired. Nil discards it.
	Log *slog.Logger
	// Grace is how long an instance that nothing refers to stays. Zero is 30 seconds, negative is not at all.
	Grace time.Duration
	// Keep is how many bytes of layers that nothing refers to are kept beyond the grace, for reuse; those used last. They take part of the
	// disk only while a fifth of it is free. Zero keeps none.
	Keep int64
	// Brief says that the process ends soon, and is one of many: what was said of the root before is not said again.
	Brief bool
	// Layers are the options of the layer store. Log, Lost and MakeRoom are set by New.
	Layers layerstore.Options
}

// OnDemand answers the kernel for lazy instances, which are named by their id. Safe for concurrent use.
type OnDemand interface {
	// Mount makes ready for a mount of an instance: from then on reads of its data are answered. It returns nil if no data are missing any more.
	Mount(ctx context.Context, instance string) (*Answering, error)
	// Unsure says why it is not known for which instances and orphans somebody answers, nil if it is known. Until then Watches and Serves prove
	// nothing by saying no.
	Unsure() error
	// Watches says whether reads of an instance's data are answered.
	Watches(instance string) bool
	// Serves says whether reads are answered of data in an orphan's directory.
	Serves(dir string) bool
	// Alive says whether the kernel has a superblock of the instance in a directory: mounted, or still in use. Those over the kernel's cache do
	// not count.
	Alive(dir string) (bool, error)
	// OverCache says whether the kernel has a superblock of the instance over its cache of files, and whether it has one that is dead: the cache that
	// it was made over has gone, and reads of it fail.
	OverCache(instance string) (live, dead bool, err error)
}

// Answering is how an instance has to be mounted for reads of its missing data to be answered.
type Answering struct {
	// Check, if not nil, finds out with the new mount whether they are.
	Check func(root string) error
	// Cookies, if set, are what to mount over the kernel's cache of files.
	Cookies *fsbackend.Cookies
}

// Snapshotter is containerd's Snapshotter on one root directory. All methods are safe for concurrent use.
type Snapshotter struct {
	root    string
	backend fsbackend.Backend
	log     *slog.Logger
	grace   time.Duration
	keep    int64 // bytes
	kept    keeping
	layers  *layerstore.Store
	lazy    *lazy.Loader
	demand  OnDemand
	stale   func(dir string) ([]string, error)
	poison  poisoned
	brief   bool
	remote  *remote.Puller
	meta    *storage.MetaStore
	overlay []string // options of all our overlay mounts

	startup func(context.Context, *os.File, startup.Program) (startup.Report, error) // nil: not done
	pulled  chan pulled

	reservedFor int64 // the length of metadata.db for which reserve was done; guarded by the write transaction

	mounting   numberLocks
	collecting sync.Mutex
	idle       map[layerstore.ID]time.Time // since when an instance has no reference; nil before the first look; guarded by collecting

	// Each holds at most one signal: something may have to be converted, collected, deleted, made again.
	wakeConvert, wakeCollect, wakeDelete, wakeRestore chan struct{}
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New opens the root directory and repairs what a crash left there. It starts no goroutines: see Run.
func New(ctx context.Context, opts Options) (_ *Snapshotter, err error) {
	root, err := checkRoot(opts.Root)
	if err != nil {
		return nil, err
	}
	s := &Snapshotter{
		root:        root,
		backend:     opts.Backend,
		log:         opts.Log,
		grace:       opts.Grace,
		keep:        opts.Keep,
		lazy:        opts.Lazy,
		demand:      opts.OnDemand,
		stale:       opts.Stale,
		brief:       opts.Brief,
		overlay:     overlayOptions(),
		startup:     opts.Startup,
		pulled:      make(chan pulled, maxPulled),
		wakeConvert: make(chan struct{}, 1),
		wakeCollect: make(chan struct{}, 1),
		wakeDelete:  make(chan struct{}, 1),
		wakeRestore: make(chan struct{}, 1),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.grace == 0 {
		s.grace = defaultGrace
	}
	// metadata.db is opened first: its lock keeps two processes from repairing the same root.
	if err := s.openMetadata(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	opts.Layers.Log, opts.Layers.Lost, opts.Layers.MakeRoom = s.log, s.lost, s.makeRoom
	if s.layers, err = layerstore.Open(root, opts.Layers); err != nil {
		return nil, err
	}
	s.remote = remote.New(s.layers, opts.Content, opts.Registry, opts.Lazy, s.log)
	if err := s.recover(ctx); err != nil {
		return nil, fmt.Errorf("repair %s: %w", root, err)
	}
	return s, nil
}

// checkRoot makes the root directory and the ones in it.
func checkRoot(root string) (string, error) {
	if root == "" {
		return "", errors.New("snapshotter: no root directory given")
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return "", err
	}
	if strings.ContainsAny(root, ":,\\\"\n") {
		return "", fmt.Errorf("snapshotter root %q: the path must not contain any of : , \\ \" and line feeds, which have a meaning in overlay mount options", root)
	}
	for _, dir := range []string{root, filepath.Join(root, "m"), filepath.Join(root, "snapshots")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", fmt.Errorf("snapshotter root: %w", err)
		}
	}
	return root, os.Chmod(root, 0o700)
}

func (s *Snapshotter) openMetadata(ctx context.Context) error {
	path := s.metadataPath()
	meta, err := storage.NewMetaStore(path, func(o *bbolt.Options) error {
		o.Timeout = lockTimeout
		return nil
	})
	if err != nil {
		return err
	}
	s.meta = meta
	err = s.update(ctx, func(_ context.Context, r *records) error { return r.init() })
	if errors.Is(err, bolterrors.ErrTimeout) {
		err = fmt.Errorf("another process has it open: is erofs-snapshotter running already? (%w)", err)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("open %s: %w", path, err), meta.Close())
	}
	return nil
}

// Layers is the store of layer instances.
func (s *Snapshotter) Layers() *layerstore.Store { return s.layers }

// Remote is what pulls layers straight from registries.
func (s *Snapshotter) Remote() *remote.Puller { return s.remote }

// Close ends imports that are running and releases the root directory. Mounts stay: containers use them. It is idempotent.
// Run should have returned before.
func (s *Snapshotter) Close() error {
	var err error
	if s.layers != nil {
		if s.remote != nil {
			s.remote.Close()
		}
		err = s.layers.Close()
	}
	return errors.Join(err, s.meta.Close())
}

func (s *Snapshotter) metadataPath() string { return filepath.Join(s.root, "metadata.db") }

func (s *Snapshotter) snapshotDir(id uint64) string {
	return filepath.Join(s.root, "snapshots", fmt.Sprint(id))
}
func (s *Snapshotter) upperDir(id uint64) string { return filepath.Join(s.snapshotDir(id), "upper") }
func (s *Snapshotter) workDir(id uint64) string  { return filepath.Join(s.snapshotDir(id), "work") }

// wake leaves a signal in c, unless one is there.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
