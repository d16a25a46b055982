// Package registry reads manifests, configs and blobs from OCI registries.
//
// Which hosts serve an image, in which order, with which certificates and headers, is containerd's business: its hosts.toml files
// are read by its own code, and its authorizer speaks to token servers. On top of that stand small layers of ours:
//
//	stream    a whole blob: parallel ranges, handed over in order           Open
//	section   a range of a blob that survives broken attempts               ReadAt
//	attempts  which host is asked next, how long to wait, when to give up
//	attempt   one request: authorised, redirected, its answer validated
//	body      bytes of one answer: stall timeout, pace, counters
//
// A range is asked for as "bytes=a-b" with identity encoding, and is never taken for anything else than the answer says it is.
// What fails at one host is tried at the next one, at the exact byte; when all have failed there is a pause. The answers:
//
//	404, 410                          the next host; NotFound when no host has it
//	401                               a new token, then once fresh credentials; Unauthenticated
//	403                               fresh credentials once; PermissionDenied
//	400, 401, 403 … after a redirect  the signed URL has expired: the registry is asked again, once
//	408, 429, 5xx, stall, reset       the next host, then again with backoff or after Retry-After
//	200 for a range                   taken if the range begins at 0 or near it; else one sequential stream
//	416, other sizes, other encoding  the next host; FailedPrecondition
//
// Less than 16 KiB within the stall timeout is a stall, and less than that from an attempt that failed is no progress: no host holds a
// pull for ever with a byte now and then. A host that will not send an object is not asked for its other ranges.
//
// Credentials and headers of a host go to that host and port alone. Query strings, userinfo and secrets never enter an error.
// The package does not verify digests of blobs, which are too large to hold back: whoever reads one to its end does.
package registry

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/time/rate"
)

const (
	// defaultConnections fills 1 Gbit/s at 10 ms with the default windows of Linux, and registries allow it.
	defaultConnections = 4
	// defaultMemory is a window of 12 ranges ahead for one blob, or 3 for each of four.
	defaultMemory = 48 << 20
	// defaultStallTimeout is longer than a pull-through cache needs to find a blob upstream.
	defaultStallTimeout = 30 * time.Second
)

// Options configure a Client. The zero value works.
type Options struct {
	// HostsDir holds a directory per registry with hosts.toml, as /etc/containerd/certs.d. If it is empty or missing, every registry
	// is asked by its own name over https, localhost over plain http.
	HostsDir string
	// Credentials are asked when a host wants to know who we are; nil is anonymous.
	Credentials Credentials
	// Log gets changes of state of hosts; nil discards.
	Log *slog.Logger
	// UserAgent is what registries see of us.
	UserAgent string
	// Connections is how many ranges are read from a host at the same time; 0 is 4.
	Connections int
	// Memory bounds the bytes buffered over all blobs; 0 is 48 MiB. Each open blob has one range beyond it if need be.
	Memory int64
	// StallTimeout is how long an attempt may go without an answer, or with less than 16 KiB of it; 0 is 30 s.
	StallTimeout time.Duration
	// BackgroundRate bounds work nobody waits for, all of it together, in bytes/s; 0 is no bound.
	BackgroundRate int64
	// PlainHTTP tells which hosts to ask over http; nil is containerd's rule.
	PlainHTTP func(host string) bool
}

// Credentials says who we are to a host. Safe for concurrent use.
type Credentials interface {
	// Get returns a user and password, an identity token without a user, or two empty strings for anonymous. image is a reference
	// ("docker.io/library/nginx:1"), host the host that asks ("registry-1.docker.io", or a mirror). refused says that what was
	// returned last was refused, so it must be asked for anew.
	Get(ctx context.Context, image, host string, refused bool) (user, secret string, err error)
}

// Client reads from registries. Safe for concurrent use.
type Client struct {
	options    Options
	policy     policy
	directory  *directory
	targets    *targets
	hosts      *hosts
	memory     *memory
	background *rate.Limiter // nil without a limit
}

// New returns a client. It reads no file and connects to nothing.
func New(o Options) *Client {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Connections <= 0 {
		o.Connections = defaultConnections
	}
	if o.Memory <= 0 {
		o.Memory = defaultMemory
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = defaultStallTimeout
	}
	if o.UserAgent == "" {
		o.UserAgent = "erofs-snapshotter"
	}
	c := &Client{
		options: o,
		policy:  defaultPolicy,
		targets: &targets{},
		hosts:   &hosts{connections: o.Connections, log: o.Log},
		memory:  newMemory(o.Memory),
	}
	c.directory = newDirectory(o, c.hosts)
	if o.BackgroundRate > 0 {
		c.background = rate.NewLimiter(rate.Limit(o.BackgroundRate), pieceBytes)
	}
	return c
}

// Close closes idle connections. Readers that are still open go on.
func (c *Client) Close() { c.directory.close() }

type backgroundKey struct{}

// Background marks work that nobody waits for. It has its own connections and is subject to BackgroundRate.
func Background(ctx context.Context) context.Context {
	return context.WithValue(ctx, backgroundKey{}, true)
}

type againKey struct{}

// Again marks a read of what came wrong n times: the n-th host after the first is asked first, then those after it, and then the others, so
// that not every attempt gets the same bytes.
func Again(ctx context.Context, n int) context.Context {
	if n <= 0 {
		return ctx
	}
	return context.WithValue(ctx, againKey{}, n)
}

// timesWrong is the n of Again, or 0.
func timesWrong(ctx context.Context) int {
	n, _ := ctx.Value(againKey{}).(int)
	return n
}

func inBackground(ctx context.Context) bool { return ctx.Value(backgroundKey{}) != nil }
