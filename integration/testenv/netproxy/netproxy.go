// Package netproxy puts an HTTP server of the test's own in front of another one, usually a registry: it records who asks for which
// bytes, and it can die in the middle of an answer. A second Proxy in front of the same registry is a mirror of it.
//
//	mirror, err := netproxy.New("http://127.0.0.1:5000", netproxy.Options{})
//	mirror.KillAfter(1 << 20) // bytes of bodies
//	... pull ...
//	for _, r := range mirror.Requests() { ... r.Range ... }
//
// The proxy changes nothing: the Host header, compression and redirects are those of the client and of the target. Its parts, Server,
// Recorder and Forward, are for other proxies, such as package faultproxy.
package netproxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
)

// discard takes what the HTTP server of a killed proxy complains about.
var discard = log.New(io.Discard, "", 0)

// Options say how a Proxy is reached and how it reaches its target. The zero value is plain HTTP.
type Options struct {
	// TLS turns on HTTPS for clients of the proxy.
	TLS *tls.Config
	// Roots are the authorities that may have signed the target's certificate. Default: those of the machine.
	Roots *x509.CertPool
}

// Proxy is a recording reverse proxy.
type Proxy struct {
	*Server
	Recorder
	forward *Forward
	// left is how many bytes of bodies may still be sent before the proxy kills itself.
	left atomic.Int64
}

// New starts a proxy in front of the server at a URL, whose path is not used. Close or Kill ends it.
func New(target string, opts Options) (*Proxy, error) {
	forward, err := NewForward(target, opts.Roots)
	if err != nil {
		return nil, err
	}
	p := &Proxy{forward: forward}
	p.left.Store(math.MaxInt64)
	p.Server, err = Serve(p.Record(http.HandlerFunc(p.serve)), ServerOptions{TLS: opts.TLS})
	return p, err
}

// KillAfter lets the proxy kill itself as soon as it has sent n more bytes of bodies, of all answers together.
func (p *Proxy) KillAfter(n int64) { p.left.Store(n) }

// Close ends the proxy and its connections to the target.
func (p *Proxy) Close() error {
	defer p.forward.Close()
	return p.Server.Close()
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) {
	p.forward.ServeHTTP(&mortalWriter{w, p}, r)
}

// mortalWriter kills the proxy when its time has come.
type mortalWriter struct {
	http.ResponseWriter
	p *Proxy
}

func (w *mortalWriter) Write(b []byte) (int, error) {
	left := w.p.left.Add(-int64(len(b)))
	if left > 0 {
		return w.ResponseWriter.Write(b)
	}
	n, err := w.ResponseWriter.Write(b[:max(0, int64(len(b))+left)])
	err = errors.Join(err, http.NewResponseController(w.ResponseWriter).Flush(), http.ErrServerClosed)
	w.p.Kill()
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *mortalWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Forward is a handler that passes requests to a target.
type Forward struct {
	httputil.ReverseProxy
	transport *http.Transport
}

// NewForward makes a handler for a target URL whose certificate, if any, was signed by one of roots (nil: the machine's).
func NewForward(target string, roots *x509.CertPool) (*Forward, error) {
	u, err := url.Parse(target)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("proxy to %q: not the URL of a server, such as http://127.0.0.1:5000 (%v)", target, err)
	}
	f := &Forward{transport: &http.Transport{
		DisableCompression:  true, // the client decides
		MaxIdleConnsPerHost: 32,
		TLSClientConfig:     &tls.Config{RootCAs: roots},
	}}
	f.ReverseProxy = httputil.ReverseProxy{
		Transport: f.transport,
		ErrorLog:  discard,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = u.Scheme, u.Host
			r.Out.Host = r.In.Host
		},
	}
	return f, nil
}

// ServeHTTP passes a request on. What the target has sent is seen by the client, also when the next byte never comes.
func (f *Forward) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.ReverseProxy.ServeHTTP(&flushingWriter{w}, r)
}

// flushingWriter sends everything at once. ReverseProxy.FlushInterval would do so in another goroutine, side by side with those who
// break the connection.
type flushingWriter struct{ http.ResponseWriter }

func (w *flushingWriter) WriteHeader(status int) {
	w.ResponseWriter.WriteHeader(status)
	if status >= 200 {
		_ = http.NewResponseController(w.ResponseWriter).Flush() // Write tells of a broken connection
	}
}

func (w *flushingWriter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	if err != nil {
		return n, err
	}
	return n, http.NewResponseController(w.ResponseWriter).Flush()
}

// Unwrap lets http.ResponseController reach the connection.
func (w *flushingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Close ends idle connections to the target.
func (f *Forward) Close() { f.transport.CloseIdleConnections() }
