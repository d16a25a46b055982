package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Lazy adds up all layers that are filled while they are read, so that there is one series of each whatever the number of layers. Counts have
// those of layers that have gone, too.
type Lazy struct {
	// Layers counts them by state: "partial", "complete", "unsynced".
	Layers map[string]int64
	// Bytes is what there is to fill in them, uncompressed, and PresentBytes how much of it may be read.
	Bytes, PresentBytes int64
	// Orphans were removed while a container uses them. Poisoned ones have lost daemon and keeper at the same time while they were mounted.
	Orphans, Poisoned int64

	// Faults counts the kernel's requests; Hits those that were answered at once because all was present, Failed those answered with EIO.
	Faults, Hits, Failed int64
	// Refused were refused by the kernel itself, for want of descriptors; Notices are losses that the kernel told of. Inherited were left without
	// an answer by an earlier process, and Late is how many answers nobody waited for.
	Refused, Notices, Inherited, Late int64
	// InFlight is how many requests have no answer yet, and Oldest how long the first of them has waited.
	InFlight int64
	Oldest   time.Duration
	// Latency is of the requests that were filled.
	Latency Histogram

	// DemandedBytes is what the kernel asked for, FetchedBytes what came from the network, compressed, by purpose: "fault", "prefetch" or
	// "background". FilledBytes is what was verified and written, uncompressed.
	DemandedBytes int64
	FetchedBytes  map[string]int64
	FilledBytes   int64
	// Corrupt counts extents that came with wrong bytes and were fetched again.
	Corrupt int64
	// CorruptIndexes counts indexes of layers that came with wrong bytes.
	CorruptIndexes int64
	// Fallbacks counts layers pulled as a whole although layers may be lazy, by reason. See Metrics.Fallbacks.
	Fallbacks map[string]int64

	// KeeperConnected says that the keeper holds what must outlive the daemon.
	KeeperConnected bool
	// KeeperHeld is how many layers it could answer for, KeeperDenied how many requests it answered with EIO because no daemon was there.
	KeeperHeld, KeeperDenied int64
}

// Histogram counts durations in buckets that stay the same while the daemon runs.
type Histogram struct {
	// Bounds are the upper ends of the buckets, growing.
	Bounds []time.Duration
	// Counts has one number for each bucket alone, and one more for what is longer than the last bound. Missing ones are 0.
	Counts []int64
	Sum    time.Duration
}

// metric has the cumulative counts that Prometheus wants.
func (h Histogram) metric(d *prometheus.Desc) prometheus.Metric {
	var n uint64
	buckets := make(map[float64]uint64, len(h.Bounds))
	for i := range max(len(h.Bounds), len(h.Counts)) {
		if i < len(h.Counts) {
			n += uint64(max(h.Counts[i], 0))
		}
		if i < len(h.Bounds) {
			buckets[h.Bounds[i].Seconds()] = n
		}
	}
	return prometheus.MustNewConstHistogram(d, n, h.Sum.Seconds(), buckets)
}

var (
	lazyLayers   = describe("lazy_layers", "Layers that are or were filled while they are read.", "state")
	lazyBytes    = describe("lazy_data_bytes", "Data of lazy layers, uncompressed.")
	lazyPresent  = describe("lazy_present_bytes", "Data of lazy layers that can be read without the network.")
	lazyOrphans  = describe("lazy_layers_orphaned", "Lazy layers that were removed while a container uses them.")
	lazyPoisoned = describe("lazy_layers_poisoned", "Lazy layers whose running containers must be restarted, because daemon and keeper ended together.")

	lazyFaults   = describe("lazy_faults_total", "Requests of the kernel for data of lazy layers.")
	lazyHits     = describe("lazy_hits_total", "Requests of the kernel that were answered at once because the data were present.")
	lazyFailed   = describe("lazy_failures_total", "Requests of the kernel that were answered with EIO.")
	lazyRefused  = describe("lazy_refused_requests_total", "Requests of the kernel that it refused itself, with EIO, for want of open files.")
	lazyNotices  = describe("lazy_notices_total", "Messages of the kernel that are no requests: it has lost some.")
	lazyInherit  = describe("lazy_inherited_requests_total", "Requests of the kernel that an earlier daemon had left without an answer.")
	lazyLate     = describe("lazy_late_answers_total", "Answers that nobody waited for: an earlier daemon had given them, or the reader was killed.")
	lazyInFlight = describe("lazy_requests_in_flight", "Requests of the kernel that have no answer yet.")
	lazyOldest   = describe("lazy_oldest_request_age_seconds", "How long the oldest request of the kernel without an answer has waited.")
	lazyLatency  = describe("lazy_fill_seconds", "How long requests of the kernel took for which data were filled in.")

	lazyDemanded  = describe("lazy_demanded_bytes_total", "Bytes that the kernel asked for, uncompressed.")
	lazyFetched   = describe("lazy_fetched_bytes_total", "Bytes fetched for lazy layers, compressed, by what for.", "purpose")
	lazyFilled    = describe("lazy_filled_bytes_total", "Bytes verified and written into lazy layers, uncompressed.")
	lazyCorrupt   = describe("lazy_corrupt_extents_total", "Extents that came with wrong bytes and were fetched again.")
	lazyIndexes   = describe("lazy_corrupt_indexes_total", "Indexes of layers that came with wrong bytes, and were asked of another host.")
	lazyFallbacks = describe("lazy_fallbacks_total", "Layers pulled as a whole although layers may be lazy, by reason.", "reason")

	keeperConnected = describe("keeper_connected", "1 while the daemon is connected to its keeper.")
	keeperHeld      = describe("keeper_layers", "Layers that the keeper could answer for.")
	keeperDenied    = describe("keeper_denied_total", "Requests of the kernel that the keeper answered with EIO because no daemon was there.")
)

// lazyDescriptions are those of all of the above.
var lazyDescriptions = []*prometheus.Desc{
	lazyLayers, lazyBytes, lazyPresent, lazyOrphans, lazyPoisoned,
	lazyFaults, lazyHits, lazyFailed, lazyRefused, lazyNotices, lazyInherit, lazyLate, lazyInFlight, lazyOldest, lazyLatency,
	lazyDemanded, lazyFetched, lazyFilled, lazyCorrupt, lazyIndexes, lazyFallbacks,
	keeperConnected, keeperHeld, keeperDenied,
}

// lazy reports what there is about lazy layers; nothing if no layer may be lazy.
func (r report) lazy(l *Lazy) {
	if l == nil {
		return
	}
	for state, n := range l.Layers {
		r.gauge(lazyLayers, n, state)
	}
	r.gauge(lazyBytes, l.Bytes)
	r.gauge(lazyPresent, l.PresentBytes)
	r.gauge(lazyOrphans, l.Orphans)
	r.gauge(lazyPoisoned, l.Poisoned)

	r.counter(lazyFaults, l.Faults)
	r.counter(lazyHits, l.Hits)
	r.counter(lazyFailed, l.Failed)
	r.counter(lazyRefused, l.Refused)
	r.counter(lazyNotices, l.Notices)
	r.counter(lazyInherit, l.Inherited)
	r.counter(lazyLate, l.Late)
	r.gauge(lazyInFlight, l.InFlight)
	r.metric(lazyOldest, prometheus.GaugeValue, l.Oldest.Seconds())
	r.ch <- l.Latency.metric(lazyLatency)

	r.counter(lazyDemanded, l.DemandedBytes)
	for purpose, n := range l.FetchedBytes {
		r.counter(lazyFetched, n, purpose)
	}
	r.counter(lazyFilled, l.FilledBytes)
	r.counter(lazyCorrupt, l.Corrupt)
	r.counter(lazyIndexes, l.CorruptIndexes)
	for reason, n := range l.Fallbacks {
		r.counter(lazyFallbacks, n, reason)
	}

	r.gauge(keeperConnected, oneIf(l.KeeperConnected))
	r.gauge(keeperHeld, l.KeeperHeld)
	r.counter(keeperDenied, l.KeeperDenied)
}
