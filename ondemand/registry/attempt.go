package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// maxLogins is how often one request is sent until it is known who we are: without a token, with an expired one, with refused
	// credentials, without any again, and with fresh ones.
	maxLogins = 6
)

// attempt is one request to one host, with all that follows from it.
type attempt struct {
	client    *Client
	endpoint  *endpoint
	object    *object
	method    string
	byterange string // of the header Range, or ""
	stall     *stall
}

func (c *Client) attempt(ctx context.Context, ep *endpoint, o *object, method, byterange string) *attempt {
	return &attempt{c, ep, o, method, byterange, newStall(ctx, c.options.StallTimeout)}
}

// exchange returns the answer to the request that is neither a redirect nor a question who we are. It may have any other status.
// A redirect target that refuses, as a signed URL does when it has expired, makes it ask the registry again, once.
func (a *attempt) exchange() (*http.Response, *failure) {
	// Each step may take the stall timeout, but a host that is slow with each redirect and each challenge does not hold us for as many.
	limit := max(a.client.policy.exchange, 2*a.stall.limit)
	defer time.AfterFunc(limit, func() { a.stall.cancel(fmt.Errorf("%w: no answer within %v", errStalled, limit)) }).Stop()
	key := targetKey{a.method, a.endpoint.host.name, a.object.repository.spec.Locator, a.object.reference}
	for again := false; ; again = true {
		known := a.client.targets.get(key)
		resp, at, f := a.follow(known)
		if at == nil {
			return resp, f
		}
		if f == nil && resp.StatusCode < http.StatusBadRequest {
			a.client.targets.put(key, at)
			return resp, nil
		}
		a.client.targets.drop(key, known)
		if f != nil || !expired(resp.StatusCode) {
			return resp, f
		}
		if again {
			return a.refusedTarget(resp)
		}
	}
}

// expired tells whether this is how stores answer to signed URLs of the past: S3 and CloudFront with 403, S3 with 400 for temporary
// credentials, others with 401, and 404 if the blob was moved.
func expired(status int) bool {
	switch status {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone:
		return true
	}
	return false
}

func (a *attempt) refusedTarget(resp *http.Response) (*http.Response, *failure) {
	if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone {
		return resp, nil
	}
	return nil, lasting(kindExpired, errdefs.ErrPermissionDenied, "redirected to %s, which answered %s twice",
		resp.Request.URL.Host, statusText(resp))
}

// follow sends the request to at, or to the registry if at is nil, and on from there. It returns where it was sent at last, nil if that
// is the registry.
func (a *attempt) follow(at *url.URL) (*http.Response, *url.URL, *failure) {
	for hops := 0; ; hops++ {
		resp, f := a.visit(at)
		if f != nil {
			return nil, at, f
		}
		next, err := redirect(resp)
		if err == nil && next == nil {
			return resp, at, nil
		}
		if err == nil && hops == maxRedirects {
			err = errRedirects
		}
		if err != nil {
			return nil, at, lasting(kindRedirect, errdefs.ErrFailedPrecondition, "%w", err)
		}
		at = next
	}
}

// visit sends the request to one place, and says who we are only to the registry itself.
func (a *attempt) visit(at *url.URL) (*http.Response, *failure) {
	if at == nil {
		return a.identify(a.endpoint.url(a.object.place, a.object.reference))
	}
	if sameOrigin(at, &a.endpoint.base) {
		return a.identify(at)
	}
	return a.send(a.request(at))
}

// identify sends the request with the authorisation that the host wants.
func (a *attempt) identify(at *url.URL) (*http.Response, *failure) {
	login, image := a.endpoint.login, a.object.repository.image
	var answered bool // the host has asked who we are, and was told
	var renewed bool  // credentials were refused, and others asked for
	for range maxLogins {
		req := a.request(at)
		generation, err := login.authorize(a.stall.ctx, req)
		if err != nil {
			refused := errors.Is(err, errTokenRefused)
			login.drop(generation, refused)
			if !refused {
				return nil, passing(kindToken, "%v", err)
			}
			if renewed {
				return nil, lasting(kindUnauthentic, errdefs.ErrUnauthenticated, "%w", err)
			}
			renewed, answered = true, false
			continue
		}
		authorization := req.Header.Get("Authorization")
		resp, f := a.send(req)
		if f != nil {
			return nil, f
		}
		switch {
		case resp.StatusCode == http.StatusUnauthorized:
			refused := answered || strings.HasPrefix(authorization, "Basic ")
			if refused && renewed {
				return resp, nil
			}
			if err := login.challenged(a.stall.ctx, image, generation, resp, refused); a.stall.ctx.Err() != nil {
				return nil, sendFailure(context.Cause(a.stall.ctx))
			} else if err != nil {
				return nil, &failure{kind: kindUnauthentic, lasting: true, err: err}
			}
			answered, renewed = true, renewed || refused
		case resp.StatusCode == http.StatusForbidden && authorization != "" && !renewed:
			login.drop(generation, true)
			answered, renewed = false, true
		default:
			return resp, nil
		}
	}
	return nil, lasting(kindUnauthentic, errdefs.ErrUnauthenticated, "still asked who we are after %d answers", maxLogins)
}

func (a *attempt) request(at *url.URL) *http.Request {
	req := &http.Request{
		Method:     a.method,
		URL:        at,
		Host:       at.Host,
		Header:     http.Header{"Accept-Encoding": {"identity"}},
		Proto:      "HTTP/1.1",
		ProtoMajor: 1,
		ProtoMinor: 1,
	}
	if a.byterange != "" {
		req.Header.Set("Range", a.byterange)
	}
	if a.object.accept != "" {
		req.Header.Set("Accept", a.object.accept)
	}
	return req.WithContext(a.stall.ctx)
}

// send uses the transport and not an http.Client, which would add the whole address to errors.
func (a *attempt) send(req *http.Request) (*http.Response, *failure) {
	a.endpoint.host.requests.Add(1)
	a.stall.renew()
	a.stall.start()
	resp, err := a.endpoint.client.RoundTrip(req)
	a.stall.stop()
	a.stall.renew()
	if err != nil {
		return nil, sendFailure(a.stall.explain(err))
	}
	resp.Request = req // and not what containerd's transport made of it that falls back to http on localhost
	if resp.StatusCode >= http.StatusMultipleChoices {
		a.keepMessage(resp)
	}
	return resp, nil
}

// keepMessage takes the beginning of a body that only says what went wrong, and gives the connection back if that was all. What another
// host than the registry says is dropped: it may repeat parts of a signed URL.
func (a *attempt) keepMessage(resp *http.Response) {
	a.stall.start()
	defer a.stall.stop()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxMessageBody))
	resp.Body.Close()
	if !sameOrigin(resp.Request.URL, &a.endpoint.base) {
		text = nil
	}
	resp.Body = io.NopCloser(bytes.NewReader(text))
}

// maxRetryAfter bounds how long we do as a host asks: a pull must end or fail within minutes.
const maxRetryAfter = 30 * time.Second

// statusFailure is what a status other than 2xx means.
func statusFailure(resp *http.Response) *failure {
	text := statusText(resp)
	if message := registryMessage(resp); message != "" {
		text += " (" + message + ")"
	}
	switch status := resp.StatusCode; {
	case status == http.StatusNotFound, status == http.StatusGone:
		return lasting(kindMissing, errdefs.ErrNotFound, "%s", text)
	case status == http.StatusUnauthorized:
		return lasting(kindUnauthentic, errdefs.ErrUnauthenticated, "%s", text)
	case status == http.StatusForbidden, status == http.StatusUnavailableForLegalReasons:
		return lasting(kindDenied, errdefs.ErrPermissionDenied, "%s", text)
	case status == http.StatusRequestedRangeNotSatisfiable:
		return lasting(kindRange, errdefs.ErrFailedPrecondition, "%s: it has a shorter one than the manifest says", text)
	case status == http.StatusRequestTimeout, status == http.StatusTooManyRequests:
		f := passing(kindThrottled, "%s", text)
		f.after = retryAfter(resp.Header, time.Now(), maxRetryAfter)
		return f
	case status >= http.StatusInternalServerError:
		f := passing(kindServer, "%s", text)
		f.after = retryAfter(resp.Header, time.Now(), maxRetryAfter)
		return f
	}
	return lasting(kindStatus, errdefs.ErrFailedPrecondition, "unexpected %s", text)
}

// statusText is the status in our words: what a server writes behind the number may be anything.
func statusText(resp *http.Response) string {
	return strings.TrimSpace(fmt.Sprintf("status %d %s", resp.StatusCode, http.StatusText(resp.StatusCode)))
}
