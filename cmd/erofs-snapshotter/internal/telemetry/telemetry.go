// Package telemetry exports what the daemon counts as Prometheus metrics, and its spans as OpenTelemetry traces.
//
// # Metrics
//
// The packages of the daemon count; nothing here does. A scrape reads one Metrics from whoever has the counts. docs/monitoring.md lists the
// names; they begin with erofs_snapshotter_ and are a promise to whoever has written an alert.
//
// # Traces
//
// Without a collector there are no spans, no goroutine and no cost. These are made:
//
//	pull        image, namespace, manifest      the work on one image
//	└ layer     layer, bytes, source            a layer is made ready
//	  ├ fetch   host, blob, bytes               one request to a registry or mirror
//	  └ convert layer, bytes, source            the blob becomes EROFS
package telemetry

import "time"

// Metrics is what a scrape reports. Counts begin with the daemon and never go back.
type Metrics struct {
	// Version of the daemon.
	Version string
	// Layers says how many layers there are and what they take on the disk, for each kind and state.
	Layers map[LayerClass]LayerSum
	// References is how many times snapshots need layers, Mounted how many layers are mounted.
	References, Mounted int64
	// KeptBytes is the disk of layers that no snapshot needs and that are kept for the next pull, KeepLimitBytes how much that may be.
	KeptBytes, KeepLimitBytes int64
	// Evicted counts layers that were removed because the limit was reached.
	Evicted int64

	// ActivePulls is how many pulls go on, RemoteLayers how many layers were made ready without containerd.
	ActivePulls, RemoteLayers int64
	// Pulls counts pulls that have ended, by outcome: "remote" or "local".
	Pulls map[string]int64
	// Fallbacks counts pulls that were left to containerd, by reason. A reason that is there with 0 before its first pull lets Prometheus see
	// an increase.
	Fallbacks map[string]int64
	// Hosts is what was asked of registries and mirrors, by name.
	Hosts map[string]Host

	Conversions Conversions
	// Lazy is nil when no layer may be lazy.
	Lazy *Lazy
	// Fscache is nil when no layer is mounted over fscache, or may be.
	Fscache *Fscache
}

// LayerClass is the kind ("erofs", "directory") and state ("building", "partial", "complete", "unsynced") of layers.
type LayerClass struct{ Kind, State string }

// LayerSum adds up layers.
type LayerSum struct{ Count, DiskBytes int64 }

// Host counts requests to one host. Retries are those of them that repeated one that had failed.
type Host struct {
	Requests, Retries, Failures, FetchedBytes int64
	// BreakerOpen says that the host is asked after all others because of failures.
	BreakerOpen bool
}

// Conversions counts conversions of layers that have ended.
type Conversions struct {
	Complete, Failed int64
	// BlobBytes and TarBytes went in, compressed and not, ImageBytes came out.
	BlobBytes, TarBytes, ImageBytes int64
	// Took is the sum of their durations, with the time that they waited for bytes.
	Took time.Duration
}
