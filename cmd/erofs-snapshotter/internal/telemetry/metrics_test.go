package telemetry

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// full has something of everything, each number once.
func full() Metrics {
	return Metrics{
		Version: "v1.2.3",
		Layers: map[LayerClass]LayerSum{
			{"erofs", "complete"}:     {Count: 3, DiskBytes: 4000},
			{"directory", "complete"}: {Count: 1, DiskBytes: 500},
		},
		References: 7, Mounted: 2, KeptBytes: 600, KeepLimitBytes: 8000, Evicted: 9,
		ActivePulls: 11, RemoteLayers: 12,
		Pulls:     map[string]int64{"remote": 13, "local": 14},
		Fallbacks: map[string]int64{"digest": 15},
		Hosts: map[string]Host{
			"registry.example": {Requests: 16, Retries: 17, Failures: 18, FetchedBytes: 19},
			"mirror\xff":       {BreakerOpen: true},
		},
		Conversions: Conversions{Complete: 20, Failed: 21, BlobBytes: 22, TarBytes: 23, ImageBytes: 24, Took: 2500 * time.Millisecond},
	}
}

func TestCollectorLint(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(NewCollector(full))
	problems, err := testutil.GatherAndLint(registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestScrape(t *testing.T) {
	body := scrape(t, Handler(full, slog.New(slog.DiscardHandler)))
	for _, want := range []string{
		`build_info{version="v1.2.3"} 1`,
		`layers{kind="erofs",state="complete"} 3`, `layers{kind="directory",state="complete"} 1`,
		`layer_disk_bytes{kind="erofs",state="complete"} 4000`, `layer_disk_bytes{kind="directory",state="complete"} 500`,
		`layer_references 7`, `layers_mounted 2`, `cache_kept_bytes 600`, `cache_keep_limit_bytes 8000`,
		`cache_evictions_total 9`, `pulls_active 11`, `remote_layers_total 12`,
		`pulls_total{outcome="remote"} 13`, `pulls_total{outcome="local"} 14`, `fallbacks_total{reason="digest"} 15`,
		`registry_requests_total{host="registry.example"} 16`, `registry_retries_total{host="registry.example"} 17`,
		`registry_failures_total{host="registry.example"} 18`, `registry_fetched_bytes_total{host="registry.example"} 19`,
		`registry_breaker_open{host="registry.example"} 0`, `registry_breaker_open{host="mirror?"} 1`,
		`conversions_total{outcome="complete"} 20`, `conversions_total{outcome="failed"} 21`, `conversion_blob_bytes_total 22`,
		`conversion_tar_bytes_total 23`, `conversion_image_bytes_total 24`, `conversion_seconds_total 2.5`,
	} {
		if !strings.Contains(body, "\n"+prefix+want+"\n") {
			t.Errorf("%s%s is missing", prefix, want)
		}
	}
	for _, want := range []string{"\ngo_goroutines ", "\nprocess_resident_memory_bytes "} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is missing", want)
		}
	}
}

func scrape(t *testing.T, h http.Handler) string {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// TestDocumentation compares the names in docs/monitoring.md with those of a scrape.
func TestDocumentation(t *testing.T) {
	text, err := os.ReadFile("../../../../docs/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	names := func(expression, text string) []string {
		var all []string
		for _, m := range regexp.MustCompile(expression).FindAllStringSubmatch(text, -1) {
			all = append(all, m[1])
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	documented := names(`(?m)^\| .?(`+prefix+`[a-z_]+)`, string(text))
	scraped := names(`(?m)^# HELP (`+prefix+`[a-z_]+)`, scrape(t, Handler(full, slog.New(slog.DiscardHandler))))
	if !slices.Equal(documented, scraped) {
		t.Errorf("documented %q\nscraped    %q", documented, scraped)
	}
}
