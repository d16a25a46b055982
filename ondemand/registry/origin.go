package registry

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
)

// maxRedirects is containerd's and Go's limit.
const maxRedirects = 10

var (
	errRedirects = errors.New("stopped after 10 redirects")
	errDowngrade = errors.New("redirect from https to http refused")
)

// ownHeaders adds the headers of hosts.toml to requests to the host they are for, and to no other: a token server or the store that a
// registry redirects to need not know them.
type ownHeaders struct {
	next   http.RoundTripper
	origin url.URL
	header http.Header
	agent  string
}

func (t *ownHeaders) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	if sameOrigin(req.URL, &t.origin) {
		for name, values := range t.header {
			// What the attempt itself needs, as Authorization and Range, is not overwritten.
			if _, set := req.Header[name]; !set {
				req.Header[name] = values
			}
		}
	}
	req.Header.Set("User-Agent", t.agent)
	return t.next.RoundTrip(req)
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

// refuseDowngrade is the CheckRedirect of token requests: they carry secrets.
func refuseDowngrade(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return errRedirects
	}
	if previous := via[len(via)-1]; previous.URL.Scheme == "https" && req.URL.Scheme != "https" {
		return errDowngrade
	}
	return nil
}
