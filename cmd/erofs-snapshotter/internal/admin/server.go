package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"golang.org/x/net/netutil"
)

// Bounds of the server, for clients that are broken or mean no good. An answer has some 100 KiB and takes milliseconds.
const (
	maxConnections = 16
	maxHeaderBytes = 16 << 10
	headerTime     = 5 * time.Second  // a client may take to send a request
	answerTime     = 10 * time.Second // a client may take to receive the answer; a profile may take that much longer than it lasts
	idleTime       = time.Minute      // a connection may stay unused
	stopGrace      = 2 * time.Second  // requests may go on after the server was told to stop
)

// Options say what is served.
type Options struct {
	// Status gives the answer of /v1/status; nil: there is no such path. Format and Time are filled in afterwards. It is called by several
	// requests at a time.
	Status func(context.Context) (Status, error)
	// Map says how much of each of so many equal parts of an instance's data blob is present, from 0 to 1, for /v1/layers/INSTANCE/map; nil: there
	// is no such path. Its error is ErrNoMap for what has none. It is called by several requests at a time.
	Map func(ctx context.Context, instance string, cells int) ([]float64, error)
	// Export chooses layers and returns what writes their data, for /v1/cache; nil: there is no such path. Its error is ErrNoLayer if there are none.
	// What it returns is called by one request at a time.
	Export func(Choice) (write func(context.Context, io.Writer) error, err error)
	// Import reads what an Export has written, and says what became of it; nil: there is no such path. It need not read all. It is called by one
	// request at a time.
	Import func(context.Context, io.Reader) ImportReport
	// Metrics answers /metrics; nil: there is no such path.
	Metrics http.Handler
	// Pprof serves Go's profiles. They show memory, so only on a socket that is ours alone.
	Pprof bool
	// Log gets what goes wrong with single connections.
	Log *slog.Logger
}

// Serve answers on the listener until ctx ends, which is no error, or the listener fails. It closes the listener, and returns after the last
// request has ended or was cut off.
func Serve(ctx context.Context, l net.Listener, o Options) error {
	server := &http.Server{
		Handler:           bodiless(newMux(o), o.takesBody),
		ReadHeaderTimeout: headerTime,
		WriteTimeout:      answerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	stopped := make(chan error, 1)
	keepOn := context.AfterFunc(ctx, func() { stopped <- stop(context.WithoutCancel(ctx), server) })
	err := server.Serve(netutil.LimitListener(l, maxConnections))
	if !keepOn() {
		return <-stopped
	}
	return errors.Join(fmt.Errorf("serve %s: %w", l.Addr(), err), server.Close())
}

// stop ends the server, with requests that are still answered after stopGrace.
func stop(ctx context.Context, server *http.Server) error {
	ctx, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	if err := server.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return server.Close()
}

func newMux(o Options) *http.ServeMux {
	mux := http.NewServeMux()
	if o.Status != nil {
		mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) { answer(w, r, o.Status) })
	}
	if o.Map != nil {
		mux.HandleFunc("GET /v1/layers/{instance}/map", func(w http.ResponseWriter, r *http.Request) { answerMap(w, r, o.Map) })
	}
	transfers := &cache{o: o, exporting: newTurn(), importing: newTurn()}
	if o.Export != nil {
		mux.HandleFunc("GET "+cachePath, transfers.export)
	}
	if o.Import != nil {
		mux.HandleFunc("POST "+cachePath, transfers.imports)
	}
	if o.Metrics != nil {
		mux.Handle("GET /metrics", o.Metrics)
	}
	if o.Pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

func answer(w http.ResponseWriter, r *http.Request, status func(context.Context) (Status, error)) {
	ctx, cancel := context.WithTimeout(r.Context(), answerTime)
	defer cancel()
	s, err := status(ctx)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.Format, s.Time = Format, time.Now()
	if s.Layers == nil {
		s.Layers = []Layer{} // an empty list in JSON, not null
	}
	if s.Pulls == nil {
		s.Pulls = []Pull{}
	}
	writeJSON(w, s)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// An error is that of the connection, which the client sees, too.
	_ = json.NewEncoder(w).Encode(v)
}

// bodiless refuses requests that carry a body and may not: the server would wait for the rest of it. A timeout for reading
// cannot be set for all requests, because it would also end profiles that take longer.
func bodiless(next http.Handler, may func(*http.Request) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength == 0 || may(r) {
			next.ServeHTTP(w, r)
			return
		}
		_ = http.NewResponseController(w).SetReadDeadline(time.Now()) // fails when the connection has gone
		w.Header().Set("Connection", "close")
		http.Error(w, "a request with a body is not understood", http.StatusRequestEntityTooLarge)
	})
}
