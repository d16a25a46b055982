package testca

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestServer asks a server on each address, which only a client that trusts the authority may believe.
func TestServer(t *testing.T) {
	ca, err := New()
	if err != nil {
		t.Fatal(err)
	}
	for _, ip := range Addresses {
		listener, err := net.Listen("tcp", net.JoinHostPort(ip.String(), "0"))
		if err != nil {
			t.Fatal(err)
		}
		server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.NotFoundHandler()}, TLS: ca.ServerTLS()}
		server.StartTLS()
		defer server.Close()
		trusting := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}}}
		defer trusting.CloseIdleConnections()
		url := "https://" + listener.Addr().String()
		resp, err := trusting.Get(url)
		if err != nil {
			t.Fatalf("trusted client at %s: %v", ip, err)
		}
		resp.Body.Close()
		if _, err := http.Get(url); err == nil {
			t.Errorf("a client that does not know the authority believed the server at %s", ip)
		}
	}
}

// TestWriteFiles loads what was written the way another program does.
func TestWriteFiles(t *testing.T) {
	ca, err := New()
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.WriteFiles(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.LoadX509KeyPair(files.Certificate, files.Key); err != nil {
		t.Error(err)
	}
}
