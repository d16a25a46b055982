package faultproxy

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/netproxy"
)

// loopParameter is in the query of a URL that redirects to itself for ever.
const loopParameter = "loop"

// fault is what happens to one request.
type fault struct {
	p    *Proxy
	kind Kind
	// place is where in the body, from 0 to 1.
	place float64
	// r is the request whose answer is forwarded.
	r *http.Request
}

// before answers instead of the target. It returns false if the fault is one of the target's answer, or a redirect that only the
// registry's address can make.
func (f *fault) before(w http.ResponseWriter, r *http.Request) bool {
	switch f.kind {
	case ResetBeforeHeaders:
		_ = netproxy.Reset(r) // a client that has gone meanwhile is as good
		panic(http.ErrAbortHandler)
	case StallBeforeHeaders:
		f.wait(r, f.p.opts.Stall)
		panic(http.ErrAbortHandler)
	case Status429:
		w.Header().Set("Retry-After", strconv.Itoa(int(f.p.opts.RetryAfter/time.Second)))
		refuse(w, http.StatusTooManyRequests)
	case Status500:
		refuse(w, http.StatusInternalServerError)
	case Status502:
		refuse(w, http.StatusBadGateway)
	case Status503:
		refuse(w, http.StatusServiceUnavailable)
	case Status504:
		refuse(w, http.StatusGatewayTimeout)
	case Status408:
		refuse(w, http.StatusRequestTimeout)
	case Status401:
		refuse(w, http.StatusUnauthorized)
	case NotFoundOnce:
		refuse(w, http.StatusNotFound)
	case Status416:
		refuse(w, http.StatusRequestedRangeNotSatisfiable)
	case RedirectLoop:
		redirectToItself(w, r)
	default:
		return false
	}
	return true
}

func refuse(w http.ResponseWriter, status int) { http.Error(w, "fault made by a test", status) }

// redirectToItself sends the client to a URL that does the same again; each differs, so that a client cannot see the loop by that.
func redirectToItself(w http.ResponseWriter, r *http.Request) {
	turn, _ := strconv.Atoi(r.URL.Query().Get(loopParameter)) // none: the first turn
	http.Redirect(w, r, fmt.Sprintf("%s?%s=%d", r.URL.EscapedPath(), loopParameter, turn+1), http.StatusTemporaryRedirect)
}

// after changes the target's answer.
func (f *fault) after(resp *http.Response) {
	length := resp.ContentLength
	good := resp.StatusCode == http.StatusPartialContent ||
		resp.StatusCode == http.StatusOK && (traits[f.kind].needs != ranged || f.kind == IgnoredRange)
	if !traits[f.kind].ofAnswer || !good || length < 2 {
		return
	}
	at := 1 + int64(f.place*float64(length-1)) // neither the first byte nor behind the last
	body := resp.Body
	reset := func() { _ = netproxy.Reset(f.r) } // a client that has gone meanwhile is as good
	var reader io.Reader = body
	switch f.kind {
	case ResetAfterHeaders:
		reader = &breakingReader{body, 0, reset}
	case ResetInBody:
		reader = &breakingReader{body, at, reset}
	case ClosedInBody:
		reader = &breakingReader{body, at, func() {}}
	case StallInBody:
		reader = &breakingReader{body, at, func() { f.wait(f.r, f.p.opts.Stall) }}
	case Trickle:
		reader = io.MultiReader(io.LimitReader(body, at), &tricklingReader{f: f, from: body}, body)
	case WrongStart:
		changeRange(resp, 1, 0)
	case WrongTotal:
		changeRange(resp, 0, 1)
	case ShortRange:
		reader = io.LimitReader(body, at)
		setLength(resp, at)
	case LongBody:
		reader = io.MultiReader(body, io.LimitReader(zeros{}, at))
		setLength(resp, length+at)
	case FlippedByte:
		reader = &flippingReader{body, at}
	case Gzipped:
		reader = newGzipReader(body)
		resp.Header.Set("Content-Encoding", "gzip")
		setLength(resp, -1)
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{reader, body}
	f.p.count(f.kind)
}

// setLength changes what the answer says of its length; -1 is nothing.
func setLength(resp *http.Response, length int64) {
	resp.ContentLength = length
	if length < 0 {
		resp.Header.Del("Content-Length")
	} else {
		resp.Header.Set("Content-Length", strconv.FormatInt(length, 10))
	}
}

// changeRange moves the range in the header Content-Range, and changes the size of the whole.
func changeRange(resp *http.Response, move, grow int64) {
	var first, last, total int64
	if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &total); err == nil {
		resp.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first+move, last+move, total+grow))
	}
}

// wait returns after a time, or when the client has gone.
func (f *fault) wait(r *http.Request, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
	}
}
