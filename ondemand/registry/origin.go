package registry

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// maxRedirects is containerd's and Go's limit.
const maxRedirects = 10

var (
	errRedirects = errors.New("stopped after 10 redirects")
	errDowngrade = errors.New("redirect from https to http refused")
	errForeign   = errors.New("redirect of a password to another host refused")
)

// ownHeaders adds the headers of hosts.toml to requests to the host they are for, and to no other: a token server or the store that a
// registry redirects to need not know them. Nor are those asked in the clear because the host, as localhost, does not speak TLS.
type ownHeaders struct {
	own, foreign http.RoundTripper
	origin       url.URL
	header       http.Header
	agent        string
}

func (t *ownHeaders) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	next := t.foreign
	if sameOrigin(req.URL, &t.origin) {
		next = t.own
		for name, values := range t.header {
			// What the attempt itself needs, as Authorization and Range, is neither overwritten nor sent twice.
			if name = http.CanonicalHeaderKey(name); req.Header[name] == nil {
				req.Header[name] = values
			}
		}
	}
	req.Header.Set("User-Agent", t.agent)
	return next.RoundTrip(req)
}

// sameOrigin tells whether both have the same scheme, host and port.
func sameOrigin(a, b *url.URL) bool {
	return strings.EqualFold(a.Scheme, b.Scheme) && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if strings.EqualFold(u.Scheme, "http") {
		return "80"
	}
	return "443"
}

// redirect returns where the answer sends us, or nil if it is not a redirect.
func redirect(resp *http.Response) (*url.URL, error) {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, nil
	}
	location := resp.Header.Get("Location")
	next, err := resp.Request.URL.Parse(location)
	if location == "" || err != nil || next.Host == "" {
		return nil, errors.New("redirect without a usable Location")
	}
	switch {
	case next.Scheme == "https":
	case next.Scheme != "http":
		return nil, errors.New("redirect to something else than http or https")
	case resp.TLS != nil:
		return nil, errDowngrade
	}
	return next, nil
}

// keepSecrets is the CheckRedirect of token requests: they carry secrets, in the header or the body, for the server that was named and
// for no other.
func keepSecrets(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return errRedirects
	}
	if previous := via[len(via)-1]; previous.URL.Scheme == "https" && req.URL.Scheme != "https" {
		return errDowngrade
	}
	// net/http itself takes away what is for another host name, but not for another port.
	if !sameOrigin(via[0].URL, req.URL) {
		req.Header.Del("Authorization")
		if req.Body != nil {
			return errForeign
		}
	}
	return nil
}

// maxToken bounds what is read of a token server's answer. Tokens have some KiB.
const maxToken = 1 << 20

// shortAnswers keeps a token server from filling the memory.
type shortAnswers struct{ next http.RoundTripper }

func (t shortAnswers) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxToken), resp.Body}
	return resp, nil
}
