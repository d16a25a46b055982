package netproxy

import (
	"net/http"
	"sync"
	"time"
)

// Request is one request that a server has finished answering, also by breaking the connection.
type Request struct {
	Method string
	// Path and Query are those of the URL; Query is not decoded.
	Path, Query string
	// Range is the header of that name, such as "bytes=0-99".
	Range string
	// Status is 0 when the connection was broken before the answer.
	Status int
	// Bytes is how much of the body was handed to the connection, in bytes.
	Bytes      int64
	UserAgent  string
	RemoteAddr string
	// Authorized says whether there was a header Authorization. Its value is not kept.
	Authorized bool
	// Time is when the request came.
	Time time.Time
}

// Recorder remembers the requests to a handler.
type Recorder struct {
	mu       sync.Mutex
	requests []Request
}

// Requests returns the finished requests, in the order in which they ended.
func (r *Recorder) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Request(nil), r.requests...)
}

// Record returns a handler that remembers each request to next.
func (r *Recorder) Record(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		record := Request{
			Method: req.Method, Path: req.URL.Path, Query: req.URL.RawQuery, Range: req.Header.Get("Range"),
			UserAgent: req.UserAgent(), RemoteAddr: req.RemoteAddr, Authorized: req.Header.Get("Authorization") != "", Time: time.Now(),
		}
		counted := &countingWriter{ResponseWriter: w}
		defer func() { // also when next panics with http.ErrAbortHandler
			record.Status, record.Bytes = counted.status, counted.bytes
			r.mu.Lock()
			r.requests = append(r.requests, record)
			r.mu.Unlock()
		}()
		next.ServeHTTP(counted, req)
	})
}

// countingWriter notes what goes through it.
type countingWriter struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (w *countingWriter) WriteHeader(status int) {
	if status >= 200 { // not the informational ones that precede it
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *countingWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
