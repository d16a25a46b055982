package registry

import (
	"net/url"
	"sync"
	"time"
)

const (
	// targetAge is shorter than most signed URLs live (5 to 20 minutes); those that end earlier are refused, and asked for again.
	targetAge = 4 * time.Minute
	// maxTargets bounds the memory; a pull has some tens of blobs.
	maxTargets = 1024
)

// targets remembers where a registry redirected to for the GET of a blob or document, so that each range need not ask it again. What
// was signed for GET is no good for HEAD.
type targets struct {
	mu    sync.Mutex
	known map[targetKey]target
}

type targetKey struct {
	method, host, repository, reference string
}

type target struct {
	url   *url.URL
	since time.Time
}

func (t *targets) get(key targetKey) *url.URL {
	t.mu.Lock()
	defer t.mu.Unlock()
	if found, ok := t.known[key]; ok && time.Since(found.since) < targetAge {
		return found.url
	}
	return nil
}

// put remembers u. The age counts from the first time that it was put.
func (t *targets) put(key targetKey, u *url.URL) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if found, ok := t.known[key]; ok && found.url == u {
		return
	}
	if t.known == nil || len(t.known) >= maxTargets {
		t.known = map[targetKey]target{}
	}
	t.known[key] = target{url: u, since: time.Now()}
}

// drop forgets u, but not what another request has learned in the meantime.
func (t *targets) drop(key targetKey, u *url.URL) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known[key].url == u {
		delete(t.known, key)
	}
}
