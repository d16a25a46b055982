package telemetry

import (
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

const prefix = "erofs_snapshotter_"

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prefix+name, help, labels, nil)
}

// The metrics. A test keeps docs/monitoring.md equal to them.
var (
	buildInfo = describe("build_info", "Always 1; the label is the version of the daemon.", "version")

	layers     = describe("layers", "Layers on disk and in the making.", "kind", "state")
	layerBytes = describe("layer_disk_bytes", "Disk that layers take.", "kind", "state")
	references = describe("layer_references", "How many times snapshots need layers.")
	mounted    = describe("layers_mounted", "Layers that are mounted.")

	keptBytes      = describe("cache_kept_bytes", "Disk of layers that no snapshot needs and that are kept for the next pull.")
	keepLimitBytes = describe("cache_keep_limit_bytes", "Limit of the disk of layers that no snapshot needs.")
	evictions      = describe("cache_evictions_total", "Layers removed because the limit was reached.")

	activePulls  = describe("pulls_active", "Pulls that go on.")
	pulls        = describe("pulls_total", "Pulls that have ended, by who fetched: remote is the daemon, local is containerd.", "outcome")
	remoteLayers = describe("remote_layers_total", "Layers made ready without containerd.")
	fallbacks    = describe("fallbacks_total", "Pulls left to containerd, by reason.", "reason")

	hostRequests = describe("registry_requests_total", "Requests to a registry or mirror.", "host")
	hostRetries  = describe("registry_retries_total", "Requests that repeated one that had failed.", "host")
	hostFailures = describe("registry_failures_total", "Requests that failed.", "host")
	hostBytes    = describe("registry_fetched_bytes_total", "Bytes received from a registry or mirror.", "host")
	breakerOpen  = describe("registry_breaker_open", "1 while the host is asked after all others because of failures.", "host")

	conversions       = describe("conversions_total", "Conversions of layers that have ended.", "outcome")
	conversionBlob    = describe("conversion_blob_bytes_total", "Bytes of layers converted, as they came.")
	conversionTar     = describe("conversion_tar_bytes_total", "Bytes of layers converted, uncompressed.")
	conversionImage   = describe("conversion_image_bytes_total", "Bytes of EROFS written by conversions.")
	conversionSeconds = describe("conversion_seconds_total", "Time that conversions took together, with waiting for bytes.")
)

// collector reports a Metrics at each scrape.
type collector struct{ read func() Metrics }

// newCollector returns a collector that calls read at each scrape, by several goroutines at a time.
func newCollector(read func() Metrics) prometheus.Collector { return collector{read} }

// Describe is part of prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range append([]*prometheus.Desc{
		buildInfo, layers, layerBytes, references, mounted, keptBytes, keepLimitBytes, evictions,
		activePulls, pulls, remoteLayers, fallbacks, hostRequests, hostRetries, hostFailures, hostBytes, breakerOpen,
		conversions, conversionBlob, conversionTar, conversionImage, conversionSeconds,
	}, slices.Concat(lazyDescriptions, fscacheDescriptions)...) {
		ch <- d
	}
}

// Collect is part of prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	m := c.read()
	r := report{ch}
	r.gauge(buildInfo, 1, m.Version)
	for class, sum := range m.Layers {
		r.gauge(layers, sum.Count, class.Kind, class.State)
		r.gauge(layerBytes, sum.DiskBytes, class.Kind, class.State)
	}
	r.gauge(references, m.References)
	r.gauge(mounted, m.Mounted)
	r.gauge(keptBytes, m.KeptBytes)
	r.gauge(keepLimitBytes, m.KeepLimitBytes)
	r.counter(evictions, m.Evicted)
	r.gauge(activePulls, m.ActivePulls)
	for outcome, n := range m.Pulls {
		r.counter(pulls, n, outcome)
	}
	r.counter(remoteLayers, m.RemoteLayers)
	for reason, n := range m.Fallbacks {
		r.counter(fallbacks, n, reason)
	}
	for name, h := range m.Hosts {
		r.counter(hostRequests, h.Requests, name)
		r.counter(hostRetries, h.Retries, name)
		r.counter(hostFailures, h.Failures, name)
		r.counter(hostBytes, h.FetchedBytes, name)
		r.gauge(breakerOpen, oneIf(h.BreakerOpen), name)
	}
	r.counter(conversions, m.Conversions.Complete, "complete")
	r.counter(conversions, m.Conversions.Failed, "failed")
	r.counter(conversionBlob, m.Conversions.BlobBytes)
	r.counter(conversionTar, m.Conversions.TarBytes)
	r.counter(conversionImage, m.Conversions.ImageBytes)
	r.metric(conversionSeconds, prometheus.CounterValue, m.Conversions.Took.Seconds())
	r.lazy(m.Lazy)
	r.fscache(m.Fscache)
}

// report sends the metrics of one scrape.
type report struct{ ch chan<- prometheus.Metric }

func (r report) gauge(d *prometheus.Desc, n int64, labels ...string) {
	r.metric(d, prometheus.GaugeValue, float64(n), labels...)
}

func (r report) counter(d *prometheus.Desc, n int64, labels ...string) {
	r.metric(d, prometheus.CounterValue, float64(n), labels...)
}

// oneIf is how Prometheus writes yes and no.
func oneIf(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}

// metric panics only when the number of labels is wrong, which the first scrape of a test shows.
func (r report) metric(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(l, "?") // anything else would fail the whole scrape
	}
	r.ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
}
