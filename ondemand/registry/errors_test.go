package registry

import (
	"errors"
	"net"
	"net/url"
	"testing"
)

// TestUnknownName: a name that nobody has is not asked for again; one that nobody could be asked about is.
func TestUnknownName(t *testing.T) {
	for _, c := range []struct {
		name        string
		err         *net.DNSError
		wantLasting bool
	}{
		{"no such host", &net.DNSError{IsNotFound: true}, true},
		{"no such host for now", &net.DNSError{IsNotFound: true, IsTemporary: true}, false},
		{"no answer", &net.DNSError{IsTimeout: true, IsTemporary: true}, false},
	} {
		err := &url.Error{Op: "Get", URL: "https://registry.example/v2/", Err: &net.OpError{Op: "dial", Net: "tcp", Err: c.err}}
		if f := sendFailure(err); f.kind != kindConnect || f.lasting != c.wantLasting || errors.Is(f, c.err) {
			t.Errorf("%s: %+v, want lasting %v", c.name, f, c.wantLasting)
		}
	}
}
