// Package faultproxy is a bad network and a bad registry in front of a good one, for tests of clients: an HTTP reverse proxy that
// meets requests with faults of many kinds, in bodies at random positions.
//
//	bad, err := faultproxy.New("http://127.0.0.1:5000", faultproxy.Options{Seed: 1, Probability: 0.2})
//	... pull from bad.Addr() ...
//	t.Log(bad.Counts())
//	bad.Off() // from here on it only forwards
//
// A request is met by at most one fault, drawn from the kinds that can happen to it; another attempt may meet another one. Equal seeds
// give equal draws, but which request comes first is up to the client. No fault lasts longer than Options.Stall.
//
// With Options.SignedURLs the proxy behaves like a registry that keeps blobs elsewhere: a blob's address answers with a redirect to a
// signed URL on StorageAddr, another host, which refuses with 403 once the signature is too old or is sent credentials that are not
// meant for it; see LeakedAuthorization.
package faultproxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/netproxy"
)

// Options say which faults happen and how often.
type Options struct {
	// Seed of the random draws.
	Seed uint64
	// Probability that a request meets a fault, 0 to 1.
	Probability float64
	// Kinds are the faults to draw from. Default: AllKinds.
	Kinds []Kind
	// Stall is how long a fault that waits does so before it breaks the connection. Default: 3 s.
	Stall time.Duration
	// RetryAfter is what an answer of 429 asks for, in whole seconds. Default: 1 s.
	RetryAfter time.Duration
	// SignedURLs, above zero, lets each GET of a blob be redirected to a URL that is valid this long.
	SignedURLs time.Duration
	// Match says which requests may meet a fault. Default: each GET and HEAD.
	Match func(*http.Request) bool
	// TLS turns on HTTPS for clients of the proxy. Its certificate must be valid for 127.0.0.1 and 127.0.0.2.
	TLS *tls.Config
	// Roots are the authorities that may have signed the target's certificate. Default: those of the machine.
	Roots *x509.CertPool
}

// Proxy is a running proxy.
type Proxy struct {
	opts    Options
	forward *netproxy.Forward
	netproxy.Recorder
	server, storage *netproxy.Server
	signed          signatures

	mu     sync.Mutex
	random *rand.Rand
	off    bool
	counts map[Kind]int
	// missing holds the paths that were once denied with 404.
	missing map[string]bool
}

// New starts a proxy in front of the server at a URL, whose path is not used. Close ends it.
func New(target string, opts Options) (*Proxy, error) {
	if opts.Kinds == nil {
		opts.Kinds = AllKinds()
	}
	for _, k := range opts.Kinds {
		if _, ok := traits[k]; !ok {
			return nil, fmt.Errorf("no kind of fault %q; there are %q", k, AllKinds())
		}
	}
	if opts.Stall == 0 {
		opts.Stall = 3 * time.Second
	}
	if opts.RetryAfter == 0 {
		opts.RetryAfter = time.Second
	}
	if opts.Match == nil {
		opts.Match = func(r *http.Request) bool { return r.Method == http.MethodGet || r.Method == http.MethodHead }
	}
	forward, err := netproxy.NewForward(target, opts.Roots)
	if err != nil {
		return nil, err
	}
	p := &Proxy{
		opts: opts, forward: forward, random: rand.New(rand.NewPCG(opts.Seed, 0)), counts: map[Kind]int{}, missing: map[string]bool{},
	}
	forward.ModifyResponse = p.tamper
	storage := netproxy.ServerOptions{IP: "127.0.0.2", TLS: opts.TLS}
	if p.storage, err = netproxy.Serve(p.Record(http.HandlerFunc(p.serveStorage)), storage); err != nil {
		return nil, err
	}
	front := netproxy.ServerOptions{TLS: opts.TLS, Listener: func(l net.Listener) net.Listener { return badListener{l, p} }}
	if p.server, err = netproxy.Serve(p.Record(http.HandlerFunc(p.serve)), front); err != nil {
		return nil, errors.Join(err, p.storage.Close())
	}
	return p, nil
}

// Addr is the proxy's IP:PORT.
func (p *Proxy) Addr() string { return p.server.Addr() }

// URL is the proxy's address with its scheme, without a path.
func (p *Proxy) URL() string { return p.server.URL() }

// StorageAddr is the IP:PORT to which blobs are redirected.
func (p *Proxy) StorageAddr() string { return p.storage.Addr() }

// Off ends the faults. Redirects to signed URLs go on.
func (p *Proxy) Off() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.off = true
}

// Counts is how often each kind of fault has happened.
func (p *Proxy) Counts() map[Kind]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.counts)
}

// LeakedAuthorization is how many requests came to the storage with credentials, which belong to the registry only.
func (p *Proxy) LeakedAuthorization() int { return p.signed.leaks() }

// Close breaks all connections and ends the proxy.
func (p *Proxy) Close() error {
	defer p.forward.Close()
	return errors.Join(p.server.Close(), p.storage.Close())
}

// serve answers on the registry's address.
func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Has(loopParameter) { // the client has followed a redirect into a loop
		redirectToItself(w, r)
		return
	}
	f := p.draw(r)
	switch {
	case f.kind != none && f.before(w, r):
	case isBlob(r) && f.kind == ExpiredURL:
		p.signed.redirect(w, r, p.storage, -time.Second)
	case isBlob(r) && p.opts.SignedURLs > 0:
		p.signed.redirect(w, r, p.storage, p.opts.SignedURLs)
	default:
		p.pass(w, r, f)
	}
}

// serveStorage answers on the address of signed URLs.
func (p *Proxy) serveStorage(w http.ResponseWriter, r *http.Request) {
	if !p.signed.open(w, r) {
		return
	}
	f := p.draw(r)
	if f.kind == none || !f.before(w, r) {
		p.pass(w, r, f)
	}
}

// pass forwards a request; tamper finds the fault in its context.
func (p *Proxy) pass(w http.ResponseWriter, r *http.Request, f *fault) {
	f.r = r
	out := r.WithContext(context.WithValue(r.Context(), faultKey{}, f))
	if f.kind == IgnoredRange {
		out.Header = r.Header.Clone()
		out.Header.Del("Range")
	}
	p.forward.ServeHTTP(w, out)
}

type faultKey struct{}

func (p *Proxy) tamper(resp *http.Response) error {
	if f, ok := resp.Request.Context().Value(faultKey{}).(*fault); ok {
		f.after(resp)
	}
	return nil
}

// draw chooses the fault of a request.
func (p *Proxy) draw(r *http.Request) *fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := &fault{p: p, place: p.random.Float64()}
	if p.off || !p.opts.Match(r) || p.random.Float64() >= p.opts.Probability {
		return f
	}
	possible := slices.DeleteFunc(slices.Clone(p.opts.Kinds), func(k Kind) bool {
		return !k.possible(r) || k == NotFoundOnce && p.missing[r.URL.Path]
	})
	if len(possible) == 0 {
		return f
	}
	f.kind = possible[p.random.IntN(len(possible))]
	if f.kind == NotFoundOnce {
		p.missing[r.URL.Path] = true
	}
	if !traits[f.kind].ofAnswer {
		p.counts[f.kind]++
	}
	return f
}

func (p *Proxy) count(k Kind) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts[k]++
}

// refuses draws whether a connection is broken as soon as it is there.
func (p *Proxy) refuses() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.off || !slices.Contains(p.opts.Kinds, ClosedOnAccept) || p.random.Float64() >= p.opts.Probability {
		return false
	}
	p.counts[ClosedOnAccept]++
	return true
}

// badListener breaks some connections before a byte was read: to a client of TLS, in the handshake.
type badListener struct {
	net.Listener
	p *Proxy
}

func (l badListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil || !l.p.refuses() {
			return conn, err
		}
		_ = netproxy.ResetConn(conn) // a client that has gone meanwhile is as good
	}
}

// isBlob says whether a request is a GET of a blob at the registry's address.
func isBlob(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, "/v2/") && strings.Contains(r.URL.Path, "/blobs/")
}
