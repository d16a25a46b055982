package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// Bounds of what tracing may take when the collector is slow or away. Spans beyond them are dropped; work never waits for a span.
const (
	queuedSpans  = 2048             // about 1 KiB each
	sendTime     = 5 * time.Second  // for one request
	retryTime    = 15 * time.Second // for one batch; others wait in the queue
	shutdownTime = 3 * time.Second
)

// endpointVariables are the variables by which OpenTelemetry names a collector.
var endpointVariables = []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"}

// TraceOptions say where traces go.
type TraceOptions struct {
	// Endpoint is the base URL of an OTLP/HTTP collector, to which /v1/traces is added. Empty: what the environment says.
	Endpoint string
	// Version of the daemon.
	Version string
	// Log is told when the collector cannot be reached, once, and when it can again.
	Log *slog.Logger
}

// StartTracing makes the global tracer provider send spans to a collector, if the options or the environment name one; otherwise it does
// nothing. The collector need not be there. Other variables of OpenTelemetry (OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES,
// OTEL_EXPORTER_OTLP_HEADERS and so on) mean what its specification says.
//
// shutdown sends what is queued and ends the goroutine. It waits a few seconds for that at most; a request to a collector that does not
// answer may then go on for sendTime.
func StartTracing(ctx context.Context, o TraceOptions) (shutdown func(context.Context) error, err error) {
	if o.Endpoint == "" && !endpointInEnvironment() {
		return func(context.Context) error { return nil }, nil
	}
	exporterOptions := []otlptracehttp.Option{
		otlptracehttp.WithTimeout(sendTime),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{
			Enabled: true, InitialInterval: time.Second, MaxInterval: sendTime, MaxElapsedTime: retryTime,
		}),
	}
	if o.Endpoint != "" {
		exporterOptions = append(exporterOptions, otlptracehttp.WithEndpointURL(strings.TrimSuffix(o.Endpoint, "/")+"/v1/traces"))
	}
	exporter, err := otlptracehttp.New(ctx, exporterOptions...)
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	// The environment comes last, so that an operator can name the service otherwise.
	from, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(),
		resource.WithAttributes(attribute.String("service.name", "erofs-snapshotter"), attribute.String("service.version", o.Version)),
		resource.WithFromEnv())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, errors.Join(fmt.Errorf("tracing: %w", err), exporter.Shutdown(ctx))
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithResource(from),
		sdktrace.WithBatcher(&reporter{SpanExporter: exporter, log: o.Log}, sdktrace.WithMaxQueueSize(queuedSpans)))
	// The library's own handler prints each error to standard error. Those of sending do not come here: see reporter.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { o.Log.Debug("tracing", "error", err) }))
	otel.SetTracerProvider(provider)
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, shutdownTime)
		defer cancel()
		err := provider.Shutdown(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			o.Log.Warn("traces could not be sent before the end and are lost", "waited", shutdownTime)
			return nil
		}
		return err
	}, nil
}

func endpointInEnvironment() bool {
	for _, name := range endpointVariables {
		if os.Getenv(name) != "" {
			return true
		}
	}
	return false
}

// reporter logs when sending begins to fail and when it works again, and not each failure between.
type reporter struct {
	sdktrace.SpanExporter
	log *slog.Logger

	mu   sync.Mutex
	lost int // spans, since sending began to fail
}

// ExportSpans is part of sdktrace.SpanExporter.
func (r *reporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := r.SpanExporter.ExportSpans(ctx, spans)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil && r.lost == 0:
		r.log.Warn("traces cannot be sent and are dropped; nothing else is affected", "error", err)
		fallthrough
	case err != nil:
		r.lost += len(spans)
	case r.lost > 0:
		r.log.Info("traces are sent again", "lost_spans", r.lost)
		r.lost = 0
	}
	return nil
}
