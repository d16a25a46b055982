// Package admin is the daemon's answer to "what are you doing": its shape, the HTTP server that gives it on the admin socket, and the
// client that asks for it.
//
//	GET /v1/status    a Status as JSON
//	GET /v1/layers/INSTANCE/map?cells=N
//	                  a Map as JSON: which parts of a lazy layer are there
//	GET /v1/cache?image=REF&instance=INSTANCE
//	                  the data of lazy layers that are here: a stream of package warm
//	POST /v1/cache    takes such a stream; an ImportReport as JSON
//	GET /metrics      what Options.Metrics answers
//	GET /debug/pprof  Go's profiles, if Options.Pprof
//
// The package knows nothing of layers and registries: whoever serves fills a Status from what it has. The answer holds names of images and
// hosts, and no secrets. Nothing can be changed through the socket but that data of layers come which would be fetched otherwise.
//
// Package render makes text of a Status.
package admin

import "time"

// Format is the version of Status. A field may be added without a new one; a reader ignores what it does not know.
const Format = 1

// Status is what the daemon has and does at one moment. It is the JSON output of `erofs-snapshotter status --json`. Numbers of bytes end in
// Bytes; times are RFC 3339 and are left out when there is none; counts begin with the daemon.
type Status struct {
	Format int `json:"format"`
	// Time is when the answer was made, by the daemon's clock, which all times here are of.
	Time    time.Time `json:"time"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	Root    string    `json:"root"`
	Layers  []Layer   `json:"layers"`
	// Pulls go on or have ended not long ago.
	Pulls []Pull `json:"pulls"`
	// Fallbacks are the pulls that were left to containerd, by reason.
	Fallbacks map[string]Fallback `json:"fallbacks"`
	// LazyFallbacks are the layers that were pulled as a whole although layers may be lazy, by reason.
	LazyFallbacks map[string]Fallback `json:"lazyFallbacks,omitempty"`
	// Keeper is missing when no layer may be lazy.
	Keeper *Keeper `json:"keeper,omitempty"`
	// Fscache is missing when no layer is mounted over fscache, or may be.
	Fscache *Fscache `json:"fscache,omitempty"`
	Cache   Cache    `json:"cache"`
	// Registry says what was asked of each host.
	Registry map[string]Host `json:"registry"`
}

// States of a layer.
const (
	Building = "building" // is made, or waits for that; has a Work
	Partial  = "partial"  // in use while its data come; has a Lazy
	Complete = "complete"
	Unsynced = "unsynced" // complete and in use, but not yet on stable storage
)

// Layer is a layer instance.
type Layer struct {
	// Instance is the name of the directory below <root>/layers. A layer that was removed while it is in use (Lazy.Orphan) or that is poisoned
	// may stand beside another one with the same name, which came later.
	Instance string `json:"instance"`
	// Digest and DiffID are empty for a layer that did not come from a blob; DiffID also while the layer is made.
	Digest string `json:"digest,omitempty"`
	DiffID string `json:"diffID,omitempty"`
	// Kind is "erofs" or "directory".
	Kind string `json:"kind"`
	// State is Building, Partial, Complete or Unsynced.
	State string `json:"state"`
	// DiskBytes is what the layer takes on the disk.
	DiskBytes int64 `json:"diskBytes"`
	// Source is where the bytes come from, in words: a registry and repository, containerd's content store.
	Source string `json:"source,omitempty"`
	// References is how many snapshots need the layer.
	References int       `json:"references"`
	Created    time.Time `json:"created,omitzero"`
	Mounted    bool      `json:"mounted"`
	// Work is set while the layer is made.
	Work *Work `json:"work,omitempty"`
	// Lazy is set for a layer whose data come while they are read. It may stay when all have come.
	Lazy *Lazy `json:"lazy,omitempty"`
}

// Work is a conversion that goes on, or waits for its turn.
type Work struct {
	// BlobBytes is the length of the layer's blob, 0 if it is not known; DoneBytes is how much of it was converted.
	BlobBytes int64 `json:"blobBytes"`
	DoneBytes int64 `json:"doneBytes"`
	// Started is missing for what waits for its turn.
	Started time.Time `json:"started,omitzero"`
	// Waiters is how many requests wait for the layer. 0: it is made ahead.
	Waiters int `json:"waiters"`
}

// Pull is the work on one image for one client.
type Pull struct {
	Image     string    `json:"image"`
	Namespace string    `json:"namespace"`
	Manifest  string    `json:"manifest"`
	Started   time.Time `json:"started"`
	// Ended is missing while the pull goes on.
	Ended time.Time `json:"ended,omitzero"`
	// Layers begin with the lowest.
	Layers []PullLayer `json:"layers"`
}

// States of a layer of a pull.
const (
	Waiting  = "waiting"
	Fetching = "fetching"
	Ready    = "ready" // made, but not yet asked for by containerd
	Done     = "done"
	Failed   = "failed"
	Local    = "local" // left to containerd
)

// PullLayer is a layer of an image that is pulled.
type PullLayer struct {
	Digest string `json:"digest"`
	// BlobBytes is the length of its blob, DoneBytes how much of it was converted.
	BlobBytes int64 `json:"blobBytes"`
	DoneBytes int64 `json:"doneBytes"`
	// State is Waiting, Fetching, Ready, Done, Failed or Local.
	State  string `json:"state"`
	Source string `json:"source,omitempty"`
}

// Fallback counts what was done another way for one reason: pulls that were left to containerd, layers that did not become lazy. It describes
// the last one.
type Fallback struct {
	Count int64     `json:"count"`
	Time  time.Time `json:"time"`
	Image string    `json:"image"`
	Cause string    `json:"cause"`
}

// Cache is the disk that layers take.
type Cache struct {
	DiskBytes int64 `json:"diskBytes"`
	// KeptBytes is the part that no snapshot needs and that is kept for the next pull, KeepLimitBytes how much that may be.
	KeptBytes      int64 `json:"keptBytes"`
	KeepLimitBytes int64 `json:"keepLimitBytes"`
}

// Host is what was asked of a registry or mirror.
type Host struct {
	// Requests counts what was sent, Retries those of them that repeated one that had failed; Failures is how many failed.
	Requests int64 `json:"requests"`
	Retries  int64 `json:"retries"`
	Failures int64 `json:"failures"`
	// FetchedBytes is how much came back.
	FetchedBytes int64 `json:"fetchedBytes"`
	// Breaker is "closed" while the host is asked, "open" while it is asked after all others because of failures, "half-open" while one request tries it.
	Breaker string `json:"breaker"`
}
