// Package layerstore keeps instances on disk: <root>/layers/<instance id>/.
//
// An instance is one layer in a form that can be mounted: an EROFS image (two files), or a directory in overlayfs form, an
// upper directory that was committed as it is. It never changes after it became visible, and its id means the same bytes for
// ever. The modification time of its directory is when it was used last.
//
//	layers/<id>/layer.json      kind "erofs": what the instance is, see Instance; has a format version
//	            meta.erofs      the meta image
//	            data            the data blob
//	            extents         of a lazy instance: see package blob, as for present
//	            present         of a lazy instance: which of its data are there
//	layers/<id>/origin          kind "directory": a symbolic link to nowhere, its target is the snapshot id
//	            dir/            the tree
//	layers/.building-<id>/      work in progress
//	layers/.broken-<id>/        what Open found damaged; kept for whoever wants to look, never used
//	orphans/<random>/           lazy instances that were discarded while data were missing: a container may still read from them
//	        users.json          of one that nobody has answered for: who was using it, see NoteUsers
//	removing/                   what is being deleted, of the store and of its caller
//
// # What becomes visible when
//
// An EROFS instance is written into .building-<id>. The files are synced, layer.json is written and synced, the directory is
// synced, renamed into place, and layers/ is synced. So an instance that is there is complete, also after a power cut.
//
// With SyncAfter, nothing of that is synced at first, and layer.json says so. The files are synced while the instance is in use already;
// then a layer.json without that mark takes the place of the first, as layer.json.next. An instance that has the mark when the store is
// opened, or an empty layer.json, is dropped: what was not written reads as zeros, and nothing tells.
//
// A directory instance exists from the moment the upper directory is renamed to layers/<id>/dir; the link is in place before
// that. One without dir/ is an adoption that did not take place. Nothing is synced: a sync waits for whatever else the disk has
// to write, and containerd waits for a commit. All of it are entries of directories and links, which filesystems put on disk in
// the order of the calls, so a power cut leaves the state of some earlier moment, and the metadata says what is missing
// from it. For the same reason there is no layer.json: the contents of a file are what a power cut loses first.
// What is in the upper directory is not synced either; containerd's own overlayfs snapshotter does not do that.
//
// # After a crash
//
// Open deletes .building-*, removing/* and adoptions that did not take place. It renames to .broken-<id> what cannot be what
// its layer.json says, so that the layer is converted anew when it is asked for. It refuses to run on a layer.json of a newer
// format, and then changes nothing.
//
// # Who may delete
//
// The store knows nothing about snapshots: which instance is referenced stands in the snapshotter's metadata. What is in use
// between "made" and "referenced" is protected by a Pin: Discard refuses a pinned instance. What is deleted was renamed away before, so
// a removal can never touch the files of a later import of the same layer.
//
// A Store is for one process at a time; the caller has a lock for that. All methods are safe for concurrent use.
package layerstore

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
)

// Names inside of an instance's directory.
const (
	metaName   = "meta.erofs"
	dataName   = "data"
	dirName    = "dir"
	originName = "origin"
	recordName = "layer.json"
	// nextRecordName takes the place of recordName when it is complete.
	nextRecordName = "layer.json.next"
)

// Prefixes of directories in layers/ that are not instances.
const (
	buildingPrefix = ".building-"
	brokenPrefix   = ".broken-"
)

// Options of a Store. The zero value works.
type Options struct {
	// Log gets what was repaired or found broken. Nil discards it.
	Log *slog.Logger
	// Limits bound what one layer may ask for.
	Limits converter.Limits
	// Parallel is how many layers are converted at a time; the others wait. Zero is the number of processors, but not more than
	// Memory allows. One more is converted while layers come from the network, if it does not: see FromNetwork.
	Parallel int
	// SyncAfter makes imported layers visible before they are on stable storage, and syncs them right after. A crash or a power cut in
	// between costs a conversion: the instance is gone then.
	SyncAfter bool
	// Lost is called with an instance that has left the store because the disk did not take it. It may be mounted.
	Lost func(ID)
	// Left is called with a lazy instance that has left the store, and the directory where its files are now: that of an orphan if it is
	// partial, see Orphans. It must return at once and call nothing of the store.
	Left func(inst Instance, dir string)
	// MakeRoom is called when the disk has no room for a conversion, after what that had written was deleted. If it returns true, because it
	// has deleted something, the conversion is tried once more, which opens its blob again.
	MakeRoom func(context.Context) bool
	// Memory is about how much memory conversions may take together, at ConversionBytes each. Zero is no bound.
	Memory int64
}

// ConversionBytes is the memory of one conversion, which ordinary layers stay below. Each inode beyond 100,000 takes about 600
// bytes more, and the window of a zstd frame up to 128 MiB.
const ConversionBytes = 64 << 20

// parallel is how many conversions may run at a time, at least one.
func (o Options) parallel() int {
	n := o.Parallel
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	if o.Memory > 0 {
		n = min(n, int(o.Memory/ConversionBytes))
	}
	return max(n, 1)
}

// Store keeps the instances below one directory.
type Store struct {
	dir      string // layers/
	removing string // removing/
	orphans  string // orphans/
	log      *slog.Logger
	limits   converter.Limits

	syncAfter bool
	lost      func(ID)
	left      func(Instance, string)
	makeRoom  func(context.Context) bool

	// What makes the two files of an instance; tests replace them.
	fromTar func(context.Context, io.Reader, converter.Target, converter.Limits) (converter.Result, error)
	fromDir func(context.Context, string, converter.Target, converter.Limits) (converter.Result, error)

	// running counts the goroutines of builds.
	running  sync.WaitGroup
	places   places // of the conversions that run, parallel of them
	parallel int

	deleting  sync.Mutex // one DeleteDiscarded at a time
	recording sync.Mutex // one change of what is kept about an instance at a time

	// mu guards what follows. It is held while an instance's directory is renamed away, never while files are written or deleted.
	mu        sync.Mutex
	closed    bool
	instances map[ID]Instance
	pins      map[ID]int
	builds    map[ID]*build
	aheadNow  int             // builds that nobody has asked for yet
	ahead     map[ID]*heldPin // of instances that were imported ahead, until their Import comes
	dirUsage  map[ID]Usage
	stats     Stats
	trim      *time.Timer // set once a build has ended
}

// Close ends the imports that are running and waits for them. It is idempotent.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	if s.trim != nil {
		s.trim.Stop()
	}
	for _, b := range s.builds {
		b.cancel()
	}
	s.mu.Unlock()
	s.running.Wait()
	return nil
}

// Parallel is how many layers are converted at a time.
func (s *Store) Parallel() int { return s.parallel }

// Get returns an instance, or an error that is errdefs.ErrNotFound.
func (s *Store) Get(id ID) (Instance, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	inst, ok := s.instances[id]
	if !ok {
		return Instance{}, fmt.Errorf("layer instance %s: %w", id, errdefs.ErrNotFound)
	}
	return inst, nil
}

// List returns all instances, ordered by id.
func (s *Store) List() []Instance {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.instances), func(a, b Instance) int { return strings.Compare(string(a.ID), string(b.ID)) })
}

// MetaPath is where the meta image of an EROFS instance is.
func (s *Store) MetaPath(id ID) string { return filepath.Join(s.path(id), metaName) }

// DataPath is where the data blob of an EROFS instance is.
func (s *Store) DataPath(id ID) string { return filepath.Join(s.path(id), dataName) }

// DirPath is where the tree of a directory instance is.
func (s *Store) DirPath(id ID) string { return filepath.Join(s.path(id), dirName) }

func (s *Store) path(id ID) string { return filepath.Join(s.dir, string(id)) }
