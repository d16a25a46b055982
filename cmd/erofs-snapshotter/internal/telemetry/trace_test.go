package telemetry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	collectorapi "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// fakeCollector is an OTLP/HTTP collector that keeps what it gets.
type fakeCollector struct {
	*httptest.Server
	mu       sync.Mutex
	paths    []string
	resource map[string]string
	spans    map[string]*tracepb.Span // by name
}

func newFakeCollector(t *testing.T) *fakeCollector {
	c := &fakeCollector{resource: map[string]string{}, spans: map[string]*tracepb.Span{}}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var request collectorapi.ExportTraceServiceRequest
		if err = errors.Join(err, proto.Unmarshal(body, &request)); err != nil {
			t.Error(err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.paths = append(c.paths, r.URL.Path)
		for _, resource := range request.ResourceSpans {
			for _, a := range resource.Resource.Attributes {
				c.resource[a.Key] = a.Value.GetStringValue()
			}
			for _, scope := range resource.ScopeSpans {
				for _, span := range scope.Spans {
					c.spans[span.Name] = span
				}
			}
		}
	}))
	t.Cleanup(c.Close)
	return c
}

// resetGlobals takes the global provider and error handler away when the test ends.
func resetGlobals(t *testing.T) {
	t.Cleanup(func() {
		otel.SetTracerProvider(noop.NewTracerProvider())
		otel.SetErrorHandler(otel.ErrorHandlerFunc(func(error) {}))
	})
}

func TestTracesArrive(t *testing.T) {
	for _, test := range []struct {
		name             string
		option, base, at string // suffixes of the collector's URL; base and at are variables of the environment
		path             string
	}{
		{name: "option", option: "/", path: "/v1/traces"},
		{name: "option with a path", option: "/otlp", path: "/otlp/v1/traces"},
		{name: "environment", base: "/", path: "/v1/traces"},
		{name: "environment, traces", at: "/elsewhere", path: "/elsewhere"},
		{name: "option before environment", option: "/x", base: "/y", path: "/x/v1/traces"},
	} {
		t.Run(test.name, func(t *testing.T) {
			resetGlobals(t)
			c := newFakeCollector(t)
			o := TraceOptions{Version: "v1.2.3", Log: slog.New(slog.DiscardHandler)}
			for name, suffix := range map[string]string{endpointVariables[0]: test.base, endpointVariables[1]: test.at} {
				if suffix != "" {
					suffix = c.URL + suffix
				}
				t.Setenv(name, suffix)
			}
			t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "rack=7")
			if test.option != "" {
				o.Endpoint = c.URL + test.option
			}
			shutdown, err := StartTracing(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			tracer := otel.Tracer("test")
			ctx, pull := tracer.Start(t.Context(), "pull", trace.WithAttributes(attribute.String("image", "registry.example/app")))
			_, layer := tracer.Start(ctx, "layer")
			layer.End()
			pull.End()
			if err := shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}

			if len(c.paths) != 1 || c.paths[0] != test.path {
				t.Errorf("requests to %q, want one to %s", c.paths, test.path)
			}
			if c.resource["service.name"] != "erofs-snapshotter" || c.resource["service.version"] != "v1.2.3" || c.resource["rack"] != "7" || c.resource["host.name"] == "" {
				t.Errorf("resource %v", c.resource)
			}
			p, l := c.spans["pull"], c.spans["layer"]
			if p == nil || l == nil {
				t.Fatalf("spans %v", c.spans)
			}
			if len(p.Attributes) != 1 || p.Attributes[0].Key != "image" || p.Attributes[0].Value.GetStringValue() != "registry.example/app" {
				t.Errorf("attributes %v", p.Attributes)
			}
			if !bytes.Equal(l.ParentSpanId, p.SpanId) || !bytes.Equal(l.TraceId, p.TraceId) {
				t.Error("the layer does not stand below its pull")
			}
		})
	}
}

func TestNoTracingWithoutCollector(t *testing.T) {
	resetGlobals(t)
	for _, name := range endpointVariables {
		t.Setenv(name, "")
	}
	provider, goroutines := otel.GetTracerProvider(), runtime.NumGoroutine()
	shutdown, err := StartTracing(t.Context(), TraceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if otel.GetTracerProvider() != provider || runtime.NumGoroutine() > goroutines {
		t.Error("something was started")
	}
	if err := shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestCollectorAway: nobody listens, and more spans come than the queue holds. All this must end without an error, a wait or much log.
func TestCollectorAway(t *testing.T) {
	resetGlobals(t)
	gone := httptest.NewServer(nil)
	gone.Close()
	var log bytes.Buffer
	shutdown, err := StartTracing(t.Context(), TraceOptions{Endpoint: gone.URL, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 * queuedSpans {
		_, span := otel.Tracer("test").Start(t.Context(), "pull")
		span.End()
	}
	if err := shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "traces cannot be sent") {
		t.Errorf("log:\n%s", log.String())
	}
}

// TestCollectorHangs: somebody listens and never answers.
func TestCollectorHangs(t *testing.T) {
	resetGlobals(t)
	asked, goOn := make(chan struct{}), make(chan struct{})
	hanging := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(asked)
		<-goOn
	}))
	defer hanging.Close()
	defer close(goOn)
	shutdown, err := StartTracing(t.Context(), TraceOptions{Endpoint: hanging.URL, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for range 4 * queuedSpans {
		_, span := otel.Tracer("test").Start(t.Context(), "pull")
		span.End()
	}
	<-asked
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// scripted is an exporter that answers with one error after another.
type scripted struct{ errs []error }

func (s *scripted) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error {
	err := s.errs[0]
	s.errs = s.errs[1:]
	return err
}

func (s *scripted) Shutdown(context.Context) error { return nil }

func TestReporterLogsChangesOnly(t *testing.T) {
	var log bytes.Buffer
	broken := errors.New("connection refused")
	r := &reporter{SpanExporter: &scripted{errs: []error{nil, broken, broken, broken, nil, nil, broken}}, log: slog.New(slog.NewTextHandler(&log, nil))}
	spans := tracetest.SpanStubs{{Name: "a"}, {Name: "b"}}.Snapshots()
	for range 7 {
		if err := r.ExportSpans(t.Context(), spans); err != nil {
			t.Error(err)
		}
	}
	text := log.String()
	if strings.Count(text, "\n") != 3 || strings.Count(text, "connection refused") != 2 || strings.Count(text, "lost_spans=6") != 1 {
		t.Errorf("log:\n%s", text)
	}
}
