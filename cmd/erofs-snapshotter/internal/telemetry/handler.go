package telemetry

import (
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// maxScrapes is how many scrapes are answered at a time: the admin socket and TCP may be scraped together, and each by two Prometheus.
const maxScrapes = 4

// Handler answers scrapes with what read returns, and with what the Go runtime and the kernel say of this process.
func Handler(read func() Metrics, log *slog.Logger) http.Handler {
	// The global registry would have whatever a library puts there.
	registry := prometheus.NewRegistry()
	registry.MustRegister(newCollector(read), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		// What can be had is better than nothing, when for instance /proc cannot be read.
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes,
		// An answer has some 20 KiB and stays on the host.
		DisableCompression: true,
	})
}
