package netproxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
)

// Server is an HTTP/1.1 server on a free port of a loopback address. Killing it breaks all of its connections at once, whatever they
// are doing, as the death of a machine does.
type Server struct {
	scheme string
	listen net.Listener
	server *http.Server
	served chan struct{} // closed when the server's own goroutine has ended
	kill   sync.Once
	killed chan struct{}
}

// ServerOptions say how a Server listens. The zero value is plain HTTP on 127.0.0.1.
type ServerOptions struct {
	// IP is the loopback address. Default: 127.0.0.1. Another one is another host for clients that bind credentials to a host.
	IP string
	// TLS turns on HTTPS.
	TLS *tls.Config
	// Listener wraps the listener below TLS.
	Listener func(net.Listener) net.Listener
}

type connKey struct{}

// Serve starts a server. Close or Kill ends it.
func Serve(handler http.Handler, opts ServerOptions) (*Server, error) {
	if opts.IP == "" {
		opts.IP = "127.0.0.1"
	}
	listen, err := net.Listen("tcp", net.JoinHostPort(opts.IP, "0"))
	if err != nil {
		return nil, err
	}
	s := &Server{scheme: "http", listen: listen, served: make(chan struct{}), killed: make(chan struct{})}
	if opts.Listener != nil {
		listen = opts.Listener(listen)
	}
	s.server = &http.Server{
		Handler:     handler,
		Protocols:   new(http.Protocols), // one request at a time on a connection, so that a connection can be broken for one request
		ErrorLog:    discard,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
	s.server.Protocols.SetHTTP1(true)
	serve := s.server.Serve
	if opts.TLS != nil {
		s.scheme = "https"
		s.server.TLSConfig = opts.TLS.Clone()
		serve = func(l net.Listener) error { return s.server.ServeTLS(l, "", "") }
	}
	go func() {
		defer close(s.served)
		_ = serve(listen) // always an error: it says that the server was closed
	}()
	return s, nil
}

// Addr is the server's IP:PORT.
func (s *Server) Addr() string { return s.listen.Addr().String() }

// URL is the server's address with its scheme, without a path.
func (s *Server) URL() string { return s.scheme + "://" + s.Addr() }

// Kill closes the listener and all connections, in the middle of whatever they carry. It does not wait.
func (s *Server) Kill() {
	s.kill.Do(func() {
		close(s.killed)
		_ = s.server.Close()
	})
}

// Killed is closed when the server has begun to end.
func (s *Server) Killed() <-chan struct{} { return s.killed }

// Close is Kill, and waits for the server. Handlers may return a moment later.
func (s *Server) Close() error {
	s.Kill()
	<-s.served
	return nil
}

// Reset makes the client of a request see "connection reset by peer". The handler has to end by http.ErrAbortHandler.
func Reset(r *http.Request) error {
	conn, ok := r.Context().Value(connKey{}).(net.Conn)
	if !ok {
		return errors.New("the request did not come through a netproxy.Server")
	}
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	return ResetConn(conn)
}

// ResetConn closes a TCP connection so that its peer sees "connection reset by peer".
func ResetConn(conn net.Conn) error {
	t, ok := conn.(*net.TCPConn)
	if !ok {
		return errors.New("the connection is not of TCP")
	}
	// Without lingering, close drops what was not sent and sends RST.
	return errors.Join(t.SetLinger(0), t.Close())
}
