package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// Each fault that one host can have, with one host: the blob is read rightly, or the error has the class.
func TestFaultsOfOneHost(t *testing.T) {
	content := big()
	total := "bytes 0-2097151/999"
	for name, test := range map[string]struct {
		fault fault
		is    func(error) bool // nil: it works
		kind  kind             // that must have been counted; "" none
	}{
		"none":                         {fault: first(0, resets)},
		"200 to all ranges":            {fault: wholeBlob(content)},
		"200 from the second range on": {fault: from(1, wholeBlob(content)), kind: kindNoRanges},
		"200 and broken": {fault: first(1, func(w http.ResponseWriter, r *http.Request, n int) bool {
			w.Header().Set("Content-Length", "8400953")
			w.Write(content[:3<<20])
			hangUp(w, r)
			return true
		}), kind: kindBroken},
		"200 of another size":           {fault: wholeBlob(content[:1<<20]), is: errdefs.IsFailedPrecondition, kind: kindLength},
		"206 shorter than asked":        {fault: shorter(content)},
		"206 from elsewhere":            {fault: lying("Content-Range", "bytes 5-2097156/8400953"), is: errdefs.IsFailedPrecondition, kind: kindRange},
		"206 of another total":          {fault: lying("Content-Range", total), is: errdefs.IsFailedPrecondition, kind: kindRange},
		"206 without Content-Range":     {fault: lying("Content-Range", ""), is: errdefs.IsFailedPrecondition, kind: kindRange},
		"206 encoded":                   {fault: lying("Content-Encoding", "gzip"), is: errdefs.IsFailedPrecondition, kind: kindContent},
		"416":                           {fault: status(416), is: errdefs.IsFailedPrecondition, kind: kindRange},
		"206 from elsewhere thrice":     {fault: first(3, lying("Content-Range", "bytes 5-2097156/8400953")), kind: kindRange},
		"206 encoded once":              {fault: from(1, first(2, lying("Content-Encoding", "gzip"))), kind: kindContent},
		"416 twice":                     {fault: first(2, status(416)), kind: kindRange},
		"404":                           {fault: status(404), is: errdefs.IsNotFound, kind: kindMissing},
		"410":                           {fault: status(410), is: errdefs.IsNotFound, kind: kindMissing},
		"401 without a challenge":       {fault: status(401), is: errdefs.IsUnauthorized, kind: kindUnauthentic},
		"403":                           {fault: status(403), is: errdefs.IsPermissionDenied, kind: kindDenied},
		"400":                           {fault: status(400), is: errdefs.IsFailedPrecondition, kind: kindStatus},
		"408 twice":                     {fault: first(2, status(408)), kind: kindThrottled},
		"429 with Retry-After":          {fault: first(2, status(429, "Retry-After", "0")), kind: kindThrottled},
		"503 thrice":                    {fault: first(3, status(503)), kind: kindServer},
		"500 for ever":                  {fault: status(500), is: errdefs.IsUnavailable, kind: kindServer},
		"reset before an answer":        {fault: first(2, resets), kind: kindBroken},
		"stall before an answer":        {fault: first(1, stalls), kind: kindStalled},
		"stall for ever":                {fault: stalls, is: errdefs.IsUnavailable, kind: kindStalled},
		"stall in mid body":             {fault: first(2, partial(content, 100_000, silence)), kind: kindStalled},
		"reset in mid body":             {fault: first(3, partial(content, 1_000_000, reset)), kind: kindBroken},
		"short body":                    {fault: first(3, partial(content, 999_999, hangUp)), kind: kindBroken},
		"short body of the last ranges": {fault: from(3, first(6, partial(content, 1, hangUp))), kind: kindBroken},
		"chunked body that is too long": {fault: surplus(content, 1), kind: kindLength},
		"always too long":               {fault: surplus(content, 1000), is: errdefs.IsUnavailable, kind: kindLength},
		"redirect loop": {fault: func(w http.ResponseWriter, r *http.Request, _ int) bool {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}, is: errdefs.IsFailedPrecondition, kind: kindRedirect},
		"redirect to nowhere":          {fault: status(307), is: errdefs.IsFailedPrecondition, kind: kindRedirect},
		"redirect to another protocol": {fault: status(307, "Location", "ftp://x/y"), is: errdefs.IsFailedPrecondition, kind: kindRedirect},
	} {
		t.Run(name, func(t *testing.T) {
			f := newRegistry(t, content, httptest.NewServer)
			f.fail("blobs", test.fault)
			c := newClient(t, Options{})
			err := readAll(t, c, f.image(), content)
			switch {
			case test.is == nil && err != nil:
				t.Fatal(err)
			case test.is != nil && !test.is(err):
				t.Fatalf("got error %v", err)
			case test.is != nil:
				checkError(t, err, f.host(), describes(content).Digest.String())
			}
			h := c.Stats().Hosts[f.host()]
			if test.kind != "" && h.Failures[string(test.kind)] == 0 || test.kind == "" && len(h.Failures) > 0 {
				t.Errorf("counted %v, want %q", h.Failures, test.kind)
			}
		})
	}
}

// checkError looks for what every final error must name.
func checkError(t *testing.T, err error, host, object string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || !strings.Contains(e.Host, host) || !strings.Contains(err.Error(), host) || !strings.Contains(err.Error(), object) {
		t.Errorf("error does not name host %s and %s: %v", host, object, err)
	}
}

func shorter(content []byte) fault {
	return func(w http.ResponseWriter, r *http.Request, n int) bool {
		off, end := requested(r)
		if end-off > 300_000 {
			short := r.Clone(r.Context())
			short.Header.Set("Range", rangeHeader(off, off+300_000))
			http.ServeContent(w, short, "", time.Time{}, bytes.NewReader(content))
			return true
		}
		return false
	}
}

// surplus answers the first requests with one byte too many, in chunks and so without a length.
func surplus(content []byte, requests int) fault {
	return first(requests, func(w http.ResponseWriter, r *http.Request, _ int) bool {
		off, end := requested(r)
		w.Header().Set("Content-Range", contentRangeHeader(off, end, len(content)))
		w.WriteHeader(http.StatusPartialContent)
		w.(http.Flusher).Flush()
		w.Write(content[off:end])
		w.Write([]byte{0})
		return true
	})
}

func TestEndOfContextAndClose(t *testing.T) {
	content := big()
	f := newRegistry(t, content, httptest.NewServer)
	f.fail("blobs", from(1, partial(content, 1000, silence)))
	c := newClient(t, Options{StallTimeout: time.Minute})

	t.Run("close", func(t *testing.T) {
		r, err := c.Open(t.Context(), f.image(), describes(content))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		r.Close()
		if _, err := r.Read(make([]byte, 10)); err == nil {
			t.Error("read after Close works")
		}
		r.Close()
	})
	t.Run("context without close", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := c.Open(ctx, f.image(), describes(content))
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		for err == nil {
			_, err = r.Read(make([]byte, 1<<20))
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		waitFor(t, "the reader to be released", func() bool { return c.Stats().Readers == 0 })
	})
	t.Run("while credentials are looked up", func(t *testing.T) {
		f.fail("blobs", basic("me", "hunter2"))
		ctx, cancel := context.WithCancel(t.Context())
		c := newClient(t, Options{Credentials: ending{cancel}})
		if err := c.ReadAt(ctx, f.image(), describes(content), make([]byte, 10), 0); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("deadline while waiting for a retry", func(t *testing.T) {
		f.fail("blobs", status(429, "Retry-After", "20"))
		c.policy.budget = time.Minute
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		err := c.ReadAt(ctx, f.image(), describes(content), make([]byte, 10), 0)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

// ending is credentials that are found just when nobody wants them any more.
type ending struct{ cancel context.CancelFunc }

func (e ending) Get(context.Context, string, string, bool) (string, string, error) {
	e.cancel()
	return "me", "hunter2", nil
}

func TestReadAt(t *testing.T) {
	content := big()
	f := newRegistry(t, content, httptest.NewServer)
	c := newClient(t, Options{})
	for _, test := range []struct {
		off, n int64
		fault  fault
		is     func(error) bool
	}{
		{off: 0, n: 10},
		{off: bigBytes - 7, n: 7},
		{off: bigBytes, n: 0},
		{off: 100, n: bigBytes - 100},
		{off: -1, n: 1, is: errdefs.IsOutOfRange},
		{off: bigBytes - 7, n: 8, is: errdefs.IsOutOfRange},
		{off: 0, n: 10, fault: wholeBlob(content)},
		{off: 5000, n: 10, fault: wholeBlob(content)},
		{off: 3 << 20, n: 10, fault: wholeBlob(content), is: errdefs.IsFailedPrecondition},
	} {
		f.fail("blobs", test.fault)
		p := make([]byte, test.n)
		err := c.ReadAt(t.Context(), f.image(), describes(content), p, test.off)
		if test.is == nil && (err != nil || string(p) != string(content[test.off:test.off+test.n])) || test.is != nil && !test.is(err) {
			t.Errorf("%d bytes at %d: %v", test.n, test.off, err)
		}
	}
}

func TestSmallBlobs(t *testing.T) {
	for _, n := range []int{0, 1, rangeBytes, rangeBytes + 1} {
		content := randomBytes(n)
		f := newRegistry(t, content, httptest.NewServer)
		c := newClient(t, Options{})
		if err := readAll(t, c, f.image(), content); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
		if h := c.Stats().Hosts[f.host()]; h.Bytes != int64(n) || h.Requests != int64(len(f.seen())) || h.Retries != 0 || h.Breaker != "closed" {
			t.Errorf("%d bytes counted as %+v", n, h)
		}
		if want := (n + rangeBytes - 1) / rangeBytes; len(f.seen()) != want {
			t.Errorf("%d bytes in %d requests, want %d", n, len(f.seen()), want)
		}
	}
}

// Whatever two hosts do at random, the bytes are right or there is an error that says why.
func TestRandomFaults(t *testing.T) {
	content := big()
	all := []fault{
		status(500), status(503), status(429, "Retry-After", "0"), status(404), status(403), status(416), resets, wholeBlob(content),
		partial(content, 1, reset), partial(content, 500_000, hangUp), partial(content, 1_500_000, reset), surplus(content, 1<<30), shorter(content),
		lying("Content-Range", "bytes 1-2/3"), lying("Content-Encoding", "br"), status(307, "Location", "http://127.0.0.1:1/?signature=hunter2"),
	}
	random := func(w http.ResponseWriter, r *http.Request, n int) bool {
		if rand.IntN(3) > 0 {
			return false
		}
		return all[rand.IntN(len(all))](w, r, n)
	}
	works := 0
	for range 20 {
		mirror, origin := newRegistry(t, content, httptest.NewServer), newRegistry(t, content, httptest.NewServer)
		mirror.fail("blobs", random)
		origin.fail("blobs", random)
		dir := writeHosts(t, upstream, fmt.Sprintf("server = %q\n[host.%q]\n", origin.URL, mirror.URL))
		err := readAll(t, newClient(t, Options{HostsDir: dir}), upstream+"/library/app:1", content)
		if err == nil {
			works++
			continue
		}
		checkError(t, err, origin.host(), describes(content).Digest.String())
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("error shows a secret: %v", err)
		}
	}
	if works == 0 {
		t.Error("no blob was read at all")
	}
}
