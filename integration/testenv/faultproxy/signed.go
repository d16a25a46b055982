package faultproxy

import (
	"crypto/rand"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/testenv/netproxy"
)

const (
	// storagePrefix precedes the path of a blob in a signed URL.
	storagePrefix = "/storage"
	// signatureParameter is in the query of signed URLs; its value must not be in anybody's log.
	signatureParameter = "X-Test-Signature"
)

// signatures are the signed URLs that were handed out.
type signatures struct {
	mu     sync.Mutex
	issued map[string]signature
	leaked int
}

// signature is what one of them allows.
type signature struct {
	path          string
	authorization string // of the request that was redirected: the target asks for it
	expires       time.Time
}

// redirect sends the client to a URL on the storage that is valid for some time.
func (s *signatures) redirect(w http.ResponseWriter, r *http.Request, storage *netproxy.Server, lifetime time.Duration) {
	secret := rand.Text()
	s.mu.Lock()
	if s.issued == nil {
		s.issued = map[string]signature{}
	}
	s.issued[secret] = signature{r.URL.Path, r.Header.Get("Authorization"), time.Now().Add(lifetime)}
	s.mu.Unlock()
	target := storage.URL() + storagePrefix + r.URL.EscapedPath() + "?" + signatureParameter + "=" + secret
	http.Redirect(w, r, target, http.StatusTemporaryRedirect)
}

// open turns a request for a signed URL into one for the target, or refuses it and returns false.
func (s *signatures) open(w http.ResponseWriter, r *http.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Header.Get("Authorization") != "" {
		s.leaked++
		http.Error(w, "credentials besides a signature", http.StatusBadRequest)
		return false
	}
	signed, ok := s.issued[r.URL.Query().Get(signatureParameter)]
	path := strings.TrimPrefix(r.URL.Path, storagePrefix)
	if !ok || path != signed.path || time.Now().After(signed.expires) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte("<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"))
		return false
	}
	r.URL.Path, r.URL.RawPath, r.URL.RawQuery = path, "", ""
	if signed.authorization != "" {
		r.Header.Set("Authorization", signed.authorization)
	}
	return true
}

// leaks is how many requests had credentials.
func (s *signatures) leaks() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leaked
}
