package admin

import "time"

// Lazy says how far a layer is filled whose data come while they are read, and what its readers asked for and got. Counts begin with the
// daemon: after a restart they are 0, and PresentBytes is not.
type Lazy struct {
	// Format is the index that says where the data are in the layer's blob: "estargz", "zstd:chunked/podman", "zstd:chunked/stargz".
	Format string `json:"format"`
	// Bytes is what there is to fill, uncompressed, and PresentBytes how much of it may be read at once; both also in extents.
	Bytes          int64 `json:"bytes"`
	PresentBytes   int64 `json:"presentBytes"`
	Extents        int   `json:"extents"`
	PresentExtents int   `json:"presentExtents"`

	// Faults counts the kernel's requests; Hits those that were answered at once because all of it was present, Failed those that were
	// answered with EIO.
	Faults int64 `json:"faults"`
	Hits   int64 `json:"hits"`
	Failed int64 `json:"failed"`
	// DemandedBytes is what the kernel asked for, present or not; FetchedBytes what came from the network for it, compressed; FilledBytes what
	// was verified and written, uncompressed.
	DemandedBytes int64   `json:"demandedBytes"`
	FetchedBytes  Fetched `json:"fetchedBytes"`
	FilledBytes   int64   `json:"filledBytes"`
	// Corrupt counts extents that came with wrong bytes and were fetched again.
	Corrupt int64   `json:"corrupt"`
	Latency Latency `json:"latency"`
	// InFlight are the kernel's requests that have no answer yet. Somebody's read waits for each.
	InFlight []Request `json:"inFlight,omitempty"`
	// LastError is why data could not be had the last time, at LastErrorTime.
	LastError     string    `json:"lastError,omitempty"`
	LastErrorTime time.Time `json:"lastErrorTime,omitzero"`

	// Verified is VerifyPending, VerifyPassed, or VerifyFailed and why.
	Verified string `json:"verified"`
	// Orphan says that the layer was removed while a container uses it. It is served until that has gone.
	Orphan bool `json:"orphan,omitempty"`
	// Poisoned says that daemon and keeper ended at the same time while the layer was mounted: what it lacked then cannot be read any more
	// through that mount. Users are the containers that have it and must be restarted.
	Poisoned bool     `json:"poisoned,omitempty"`
	Users    []string `json:"users,omitempty"`
}

// What Verified says of the digests of a whole layer, which can be compared only when all of it is there. Each extent was compared with the
// index before anybody could read it.
const (
	VerifyPending = "pending"
	VerifyPassed  = "yes"
	VerifyFailed  = "failed: " // followed by the cause
)

// Fetched is a number of bytes for each purpose that they came for.
type Fetched struct {
	Fault      int64 `json:"fault"`
	Prefetch   int64 `json:"prefetch"`
	Background int64 `json:"background"`
}

// Total adds up all purposes.
func (f Fetched) Total() int64 { return f.Fault + f.Prefetch + f.Background }

// Latency is how long requests took that were filled, in seconds: all but hits and failures. All 0: there was none.
type Latency struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// Request is one of the kernel's, for a range of a data blob.
type Request struct {
	OffsetBytes int64     `json:"offsetBytes"`
	LengthBytes int64     `json:"lengthBytes"`
	Since       time.Time `json:"since"`
}

// Keeper is the process that holds what must outlive the daemon.
type Keeper struct {
	Address   string `json:"address"`
	Connected bool   `json:"connected"`
	// Pid is its process, 0 if not known.
	Pid int `json:"pid,omitempty"`
	// Held is how many layers it could answer for.
	Held int `json:"held"`
	// Device says that it holds /dev/cachefiles, and so answers for all layers that are mounted over fscache.
	Device bool `json:"device,omitempty"`
	// Denied counts requests that it answered with EIO because no daemon was there.
	Denied int64 `json:"denied"`
	// Since is when the connection was made or, if there is none, lost.
	Since time.Time `json:"since,omitzero"`
}
