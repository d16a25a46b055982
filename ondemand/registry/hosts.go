package registry

import (
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// Stats is what a Client has done since it was made.
type Stats struct {
	// Hosts is by the name of a host, with its port if it is not that of the scheme.
	Hosts map[string]HostStats
	// Readers is how many blobs are open, BufferedBytes what they hold.
	Readers       int
	BufferedBytes int64
}

// HostStats is about one host.
type HostStats struct {
	Requests int64            // sent to it, or to where it redirected
	Retries  int64            // attempts after one that failed
	Bytes    int64            // of bodies of blobs, manifests and configs
	Failures map[string]int64 // attempts that failed, by kind: "connect", "stalled", "server" …
	Breaker  string           // "closed", "open", "half-open"
}

// Stats returns the counters of now.
func (c *Client) Stats() Stats {
	s := Stats{Hosts: c.hosts.stats()}
	s.Readers, s.BufferedBytes = c.memory.stats()
	return s
}

// hosts are all hosts that were ever asked: a mirror of two registries is one host.
type hosts struct {
	connections int
	log         *slog.Logger

	mu     sync.Mutex
	byName map[string]*host
}

// host is what is known of a host over all blobs.
type host struct {
	name    string
	breaker *breaker
	// slots bounds ranges that are read at the same time. Work that nobody waits for has its own: it may be slow on purpose.
	slots, backgroundSlots *semaphore.Weighted

	requests, retries, bytes atomic.Int64

	mu       sync.Mutex
	failures map[string]int64
}

func (h *hosts) get(name string) *host {
	h.mu.Lock()
	defer h.mu.Unlock()
	if known, ok := h.byName[name]; ok {
		return known
	}
	n := &host{
		name:            name,
		breaker:         &breaker{log: h.log.With("host", name), now: time.Now},
		slots:           semaphore.NewWeighted(int64(h.connections)),
		backgroundSlots: semaphore.NewWeighted(int64(max(1, h.connections/2))),
		failures:        map[string]int64{},
	}
	if h.byName == nil {
		h.byName = map[string]*host{}
	}
	h.byName[name] = n
	return n
}

func (h *hosts) stats() map[string]HostStats {
	h.mu.Lock()
	all := maps.Clone(h.byName)
	h.mu.Unlock()
	stats := make(map[string]HostStats, len(all))
	for name, host := range all {
		stats[name] = host.stats()
	}
	return stats
}

func (h *host) stats() HostStats {
	h.mu.Lock()
	defer h.mu.Unlock()
	return HostStats{
		Requests: h.requests.Load(),
		Retries:  h.retries.Load(),
		Bytes:    h.bytes.Load(),
		Failures: maps.Clone(h.failures),
		Breaker:  h.breaker.state(),
	}
}

// failed notes an attempt that failed.
func (h *host) failed(f *failure) {
	h.mu.Lock()
	h.failures[string(f.kind)]++
	h.mu.Unlock()
	if f.blames() {
		h.breaker.failed(f)
	} else {
		h.breaker.worked()
	}
}
