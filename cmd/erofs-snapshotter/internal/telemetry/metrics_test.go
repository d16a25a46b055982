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
		Lazy: &Lazy{
			Layers: map[string]int64{"partial": 30, "complete": 31}, Bytes: 32, PresentBytes: 33, Orphans: 34, Poisoned: 35,
			Faults: 36, Hits: 37, Failed: 38, Refused: 60, Notices: 61, Inherited: 62, Late: 63, InFlight: 39, Oldest: 1500 * time.Millisecond,
			Latency: Histogram{
				Bounds: []time.Duration{time.Millisecond, time.Second, time.Minute}, Counts: []int64{40, 2, 0, 1}, Sum: 75 * time.Second,
			},
			DemandedBytes: 50, FetchedBytes: map[string]int64{"fault": 51, "prefetch": 52, "background": 53}, FilledBytes: 54, Corrupt: 55, CorruptIndexes: 59,
			Fallbacks: map[string]int64{"small": 56}, KeeperConnected: true, KeeperHeld: 57, KeeperDenied: 58,
		},
		Fscache: &Fscache{Layers: 70, Files: 71, Reads: 72, Failed: 73, NoRoom: 74, CopiedBytes: 75, CulledBytes: 76, WantsSpace: true},
	}
}

func TestCollectorLint(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(newCollector(full))
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
		`lazy_layers{state="partial"} 30`, `lazy_layers{state="complete"} 31`, `lazy_data_bytes 32`, `lazy_present_bytes 33`,
		`lazy_layers_orphaned 34`, `lazy_layers_poisoned 35`, `lazy_faults_total 36`, `lazy_hits_total 37`, `lazy_failures_total 38`,
		`lazy_refused_requests_total 60`, `lazy_notices_total 61`, `lazy_inherited_requests_total 62`, `lazy_late_answers_total 63`,
		`lazy_requests_in_flight 39`, `lazy_oldest_request_age_seconds 1.5`,
		`lazy_fill_seconds_bucket{le="0.001"} 40`, `lazy_fill_seconds_bucket{le="1"} 42`, `lazy_fill_seconds_bucket{le="60"} 42`,
		`lazy_fill_seconds_bucket{le="+Inf"} 43`, `lazy_fill_seconds_count 43`, `lazy_fill_seconds_sum 75`,
		`lazy_demanded_bytes_total 50`, `lazy_fetched_bytes_total{purpose="fault"} 51`, `lazy_fetched_bytes_total{purpose="prefetch"} 52`,
		`lazy_fetched_bytes_total{purpose="background"} 53`, `lazy_filled_bytes_total 54`, `lazy_corrupt_extents_total 55`, `lazy_corrupt_indexes_total 59`,
		`lazy_fallbacks_total{reason="small"} 56`, `keeper_connected 1`, `keeper_layers 57`, `keeper_denied_total 58`,
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

// TestNoLazySeries: where no layer may be lazy, there is nothing that an alert could mistake for trouble.
func TestNoLazySeries(t *testing.T) {
	m := full()
	m.Lazy = nil
	body := scrape(t, Handler(func() Metrics { return m }, slog.New(slog.DiscardHandler)))
	if strings.Contains(body, prefix+"lazy_") || strings.Contains(body, prefix+"keeper_") {
		t.Error(body)
	}
}

// TestHistogram: counts that do not fit the bounds must not fail a scrape.
func TestHistogram(t *testing.T) {
	second := []time.Duration{time.Second}
	for name, test := range map[string]struct {
		h                       Histogram
		inBucket, all, noBucket string
	}{
		"empty":         {Histogram{}, "", "lazy_fill_seconds_count 0", `lazy_fill_seconds_bucket{le="1"}`},
		"no counts":     {Histogram{Bounds: second}, `lazy_fill_seconds_bucket{le="1"} 0`, "lazy_fill_seconds_count 0", ""},
		"counts beyond": {Histogram{Bounds: second, Counts: []int64{1, 2, 4}}, `lazy_fill_seconds_bucket{le="1"} 1`, "lazy_fill_seconds_count 7", ""},
		"negative":      {Histogram{Bounds: second, Counts: []int64{-1, 3}}, `lazy_fill_seconds_bucket{le="1"} 0`, "lazy_fill_seconds_count 3", ""},
	} {
		t.Run(name, func(t *testing.T) {
			body := scrape(t, Handler(func() Metrics { return Metrics{Lazy: &Lazy{Latency: test.h}} }, slog.New(slog.DiscardHandler)))
			if !strings.Contains(body, test.inBucket) || !strings.Contains(body, test.all+"\n") || test.noBucket != "" && strings.Contains(body, test.noBucket) {
				t.Error(body)
			}
		})
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
