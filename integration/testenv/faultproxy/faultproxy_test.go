package faultproxy

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/testca"
)

const (
	blobPath = "/v2/name/blobs/sha256:abc"
	blobSize = 100_000
	ranges   = "bytes=1000-50999"
)

var (
	content = func() []byte {
		b := make([]byte, blobSize)
		random := rand.New(rand.NewPCG(1, 2))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}()
	wanted = content[1000:51000]
)

// answer is what a client got.
type answer struct {
	status int
	header http.Header
	length int64
	body   []byte
	err    error // of the request, or of the body
}

func newProxy(t *testing.T, opts Options) *Proxy {
	t.Helper()
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	t.Cleanup(origin.Close)
	p, err := New(origin.URL, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// ask sends one request on a connection of its own; keep-alive would let net/http repeat it.
func ask(t *testing.T, p *Proxy, edit func(*http.Request)) answer {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, p.URL()+blobPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Range", ranges)
	req.Header.Set("Accept-Encoding", "identity")
	if edit != nil {
		edit(req)
	}
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, resp.ContentLength, body, err}
}

func isReset(a answer) bool { return errors.Is(a.err, syscall.ECONNRESET) }

// isPart says whether a beginning of the range came, and neither nothing nor all.
func isPart(a answer) bool {
	return len(a.body) > 0 && len(a.body) < len(wanted) && bytes.HasPrefix(wanted, a.body)
}

func hasStatus(status int) func(answer) bool {
	return func(a answer) bool { return a.err == nil && a.status == status }
}

// is206 says whether the answer looks like a good one with this Content-Range.
func is206(a answer, contentRange string) bool {
	return a.err == nil && a.status == 206 && a.header.Get("Content-Range") == contentRange
}

const goodRange = "bytes 1000-50999/100000"

// effects is what a client sees of each kind of fault.
var effects = map[Kind]func(answer) bool{
	ClosedOnAccept:     isReset,
	ResetBeforeHeaders: isReset,
	ResetAfterHeaders:  func(a answer) bool { return isReset(a) && len(a.body) == 0 },
	ResetInBody:        func(a answer) bool { return isReset(a) && len(a.body) < len(wanted) },
	ClosedInBody:       func(a answer) bool { return errors.Is(a.err, io.ErrUnexpectedEOF) && isPart(a) },
	StallBeforeHeaders: func(a answer) bool { return errors.Is(a.err, io.EOF) },
	StallInBody:        func(a answer) bool { return errors.Is(a.err, io.ErrUnexpectedEOF) && isPart(a) },
	Trickle:            func(a answer) bool { return is206(a, goodRange) && bytes.Equal(a.body, wanted) },
	Status500:          hasStatus(500),
	Status502:          hasStatus(502),
	Status503:          hasStatus(503),
	Status504:          hasStatus(504),
	Status429:          func(a answer) bool { return a.status == 429 && a.header.Get("Retry-After") == "7" },
	Status408:          hasStatus(408),
	Status401:          func(a answer) bool { return a.status == 401 && a.header.Get("WWW-Authenticate") == "" },
	NotFoundOnce:       hasStatus(404),
	ExpiredURL:         hasStatus(403),
	RedirectLoop:       func(a answer) bool { return a.err != nil && !isReset(a) },
	Status416:          hasStatus(416),
	IgnoredRange:       func(a answer) bool { return a.err == nil && a.status == 200 && bytes.Equal(a.body, content) },
	WrongStart:         func(a answer) bool { return is206(a, "bytes 1001-51000/100000") && bytes.Equal(a.body, wanted) },
	WrongTotal:         func(a answer) bool { return is206(a, "bytes 1000-50999/100001") && bytes.Equal(a.body, wanted) },
	ShortRange:         func(a answer) bool { return is206(a, goodRange) && isPart(a) && a.length == int64(len(a.body)) },
	LongBody: func(a answer) bool {
		return is206(a, goodRange) && len(a.body) > len(wanted) && bytes.HasPrefix(a.body, wanted) && a.length == int64(len(a.body))
	},
	FlippedByte: func(a answer) bool { return is206(a, goodRange) && differences(a.body, wanted) == 1 },
	Gzipped: func(a answer) bool {
		z, err := gzip.NewReader(bytes.NewReader(a.body))
		if err != nil || a.header.Get("Content-Encoding") != "gzip" {
			return false
		}
		plain, err := io.ReadAll(z)
		return err == nil && bytes.Equal(plain, wanted)
	},
}

func differences(a, b []byte) (n int) {
	if len(a) != len(b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

// TestKinds lets each kind of fault happen at several places, in plain HTTP and in TLS.
func TestKinds(t *testing.T) {
	ca, err := testca.New()
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range AllKinds() {
		t.Run(string(kind), func(t *testing.T) {
			for _, config := range []*tls.Config{nil, ca.ServerTLS()} {
				for seed := range uint64(4) {
					p := newProxy(t, Options{
						Seed: seed, Probability: 1, Kinds: []Kind{kind}, Stall: 200 * time.Millisecond, RetryAfter: 7 * time.Second, TLS: config,
					})
					got := ask(t, p, nil)
					if effect := effects[kind]; effect == nil || !effect(got) {
						t.Errorf("status %d, header %v, %d bytes, error %v", got.status, got.header, len(got.body), got.err)
					}
					if p.Counts()[kind] == 0 {
						t.Error("not counted")
					}
				}
			}
		})
	}
}

// TestHarmless asks what faults must leave alone: with probability 0, after Off, what Match excludes, and the second 404.
func TestHarmless(t *testing.T) {
	good := func(p *Proxy) {
		t.Helper()
		if got := ask(t, p, nil); !is206(got, goodRange) || !bytes.Equal(got.body, wanted) {
			t.Errorf("status %d, %d bytes, error %v, want a good answer", got.status, len(got.body), got.err)
		}
	}
	good(newProxy(t, Options{}))
	good(newProxy(t, Options{Probability: 1, Match: func(r *http.Request) bool { return r.URL.Path != blobPath }, Kinds: []Kind{Status500}}))
	off := newProxy(t, Options{Probability: 1})
	off.Off()
	good(off)
	once := newProxy(t, Options{Probability: 1, Kinds: []Kind{NotFoundOnce}})
	if got := ask(t, once, nil); got.status != 404 {
		t.Errorf("status %d, want 404 once", got.status)
	}
	good(once)
	whole := newProxy(t, Options{Probability: 1, Kinds: []Kind{IgnoredRange, WrongStart, Status416}})
	if got := ask(t, whole, func(r *http.Request) { r.Header.Del("Range") }); got.status != 200 || !bytes.Equal(got.body, content) {
		t.Errorf("a request without a range met a fault of ranges: status %d", got.status)
	}
}

// TestSeed draws the same faults twice, and others with another seed.
func TestSeed(t *testing.T) {
	draws := func(seed uint64) (kinds []Kind, places []float64) {
		p := newProxy(t, Options{Seed: seed, Probability: 0.5})
		r := httptest.NewRequest(http.MethodGet, blobPath, nil)
		r.Header.Set("Range", ranges)
		for range 200 {
			f := p.draw(r)
			kinds, places = append(kinds, f.kind), append(places, f.place)
		}
		return kinds, places
	}
	kinds, places := draws(1)
	again, placesAgain := draws(1)
	other, _ := draws(2)
	same := func(a, b []Kind) bool {
		for i := range a {
			if a[i] != b[i] {
				return false
			}
		}
		return true
	}
	if !same(kinds, again) || places[199] != placesAgain[199] {
		t.Error("equal seeds gave different draws")
	}
	if same(kinds, other) {
		t.Error("different seeds gave equal draws")
	}
	var faults int
	for _, k := range kinds {
		if k != none {
			faults++
		}
	}
	if faults < 60 || faults > 140 {
		t.Errorf("%d faults in 200 requests with probability 0.5", faults)
	}
}

// TestSignedURLs follows redirects to the storage; the registry's credentials stay with the registry.
func TestSignedURLs(t *testing.T) {
	p := newProxy(t, Options{SignedURLs: time.Hour})
	authorize := func(r *http.Request) { r.Header.Set("Authorization", "Bearer secret") }
	if got := ask(t, p, authorize); !is206(got, goodRange) || !bytes.Equal(got.body, wanted) {
		t.Errorf("status %d, %d bytes, error %v, want a good answer", got.status, len(got.body), got.err)
	}
	if p.LeakedAuthorization() != 0 {
		t.Error("net/http's client sent the credentials to another host, or the proxy thinks so")
	}
	forged := func(r *http.Request) { r.URL.Host, r.URL.Path = p.StorageAddr(), storagePrefix+blobPath }
	if got := ask(t, p, forged); got.status != 403 {
		t.Errorf("storage without a signature: status %d, want 403", got.status)
	}
	if got := ask(t, p, func(r *http.Request) { forged(r); authorize(r) }); got.status != 400 || p.LeakedAuthorization() != 1 {
		t.Errorf("storage with credentials: status %d, %d leaks counted, want 400 and 1", got.status, p.LeakedAuthorization())
	}
}

// TestExpiry uses a signed URL once more when it is too old.
func TestExpiry(t *testing.T) {
	p := newProxy(t, Options{SignedURLs: time.Nanosecond})
	if got := ask(t, p, nil); got.status != 403 {
		t.Errorf("status %d, want 403", got.status)
	}
}

func TestUnknownKind(t *testing.T) {
	if _, err := New("http://127.0.0.1:1", Options{Kinds: []Kind{"earthquake"}}); err == nil {
		t.Error("no error for a kind that does not exist")
	}
}
