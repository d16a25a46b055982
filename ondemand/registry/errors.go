package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// Error says what could not be read, from where and why: "blob sha256:… from registry.example: status 503". It has one of the classes
// of github.com/containerd/errdefs, or wraps the error of the context.
type Error struct {
	Host   string // the hosts that were asked, in their order
	Object string
	Err    error
}

func (e *Error) Error() string {
	if e.Host == "" {
		return e.Object + ": " + e.Err.Error()
	}
	return e.Object + " from " + e.Host + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// kind is what went wrong in an attempt, as it is counted.
type kind string

const (
	kindConnect     kind = "connect"     // no connection
	kindTLS         kind = "tls"         // the certificate of one side is not good
	kindBroken      kind = "broken"      // a connection broke, or a body ended early
	kindStalled     kind = "stalled"     // hardly a byte for the stall timeout
	kindToken       kind = "token"       // the token server failed
	kindUnauthentic kind = "unauthentic" // 401
	kindDenied      kind = "denied"      // 403
	kindMissing     kind = "missing"     // 404
	kindThrottled   kind = "throttled"   // 408, 429
	kindServer      kind = "server"      // 5xx
	kindExpired     kind = "expired"     // a signed URL was refused, and a new one as well
	kindRedirect    kind = "redirect"    // too many, or to where we do not go
	kindRange       kind = "range"       // not the range that was asked for, or hardly a byte of it
	kindNoRanges    kind = "noranges"    // 200 where only a range is of use
	kindLength      kind = "length"      // not the size that the descriptor says
	kindContent     kind = "content"     // encoded, or not the digest
	kindStatus      kind = "status"      // any other status
)

// failure is why an attempt failed.
type failure struct {
	kind    kind
	lasting bool          // asking the same host for the same again would not help
	after   time.Duration // the host wants to be left alone for so long
	err     error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// passing is a failure that another attempt may not meet.
func passing(k kind, format string, args ...any) *failure {
	return &failure{kind: k, err: fmt.Errorf("%w: "+format, append([]any{errdefs.ErrUnavailable}, args...)...)}
}

// lasting is a failure that this host will answer again.
func lasting(k kind, class error, format string, args ...any) *failure {
	return &failure{kind: k, lasting: true, err: fmt.Errorf("%w: "+format, append([]any{class}, args...)...)}
}

// general tells whether the host would say the same of any range of the object.
func (f *failure) general() bool { return f.lasting && f.kind != kindRange && f.kind != kindNoRanges }

// strange tells whether the answer breaks the protocol, which says little about the next one.
func (f *failure) strange() bool {
	switch f.kind {
	case kindRange, kindLength, kindContent, kindRedirect:
		return f.lasting
	}
	return false
}

// blames tells whether the failure speaks against the host as such, and not only against the one request.
func (f *failure) blames() bool {
	switch f.kind {
	case kindConnect, kindTLS, kindBroken, kindStalled, kindThrottled, kindServer:
		return true
	}
	return false
}

// sendFailure is what an error of a transport means. The error itself stays behind: timeouts of connections pass for
// context.DeadlineExceeded, which only the end of the caller's context is.
func sendFailure(err error) *failure {
	var operation *net.OpError
	var unknown *net.DNSError
	var certificate *tls.CertificateVerificationError
	var alert tls.AlertError
	switch err = scrub(err); {
	case errors.Is(err, errStalled), errors.Is(err, errTrickle):
		return passing(kindStalled, "%v", err)
	case errors.As(err, &certificate), errors.As(err, &alert):
		return lasting(kindTLS, errdefs.ErrUnavailable, "%v", err)
	case errors.As(err, &unknown) && unknown.IsNotFound && !unknown.IsTemporary: // a misspelt name stays so
		return lasting(kindConnect, errdefs.ErrUnavailable, "%v", err)
	case errors.As(err, &operation) && operation.Op == "dial":
		return passing(kindConnect, "%v", err)
	}
	return passing(kindBroken, "%v", err)
}

// hostErrors is the failures of several hosts. Its class is that of the most telling one: "not found" only if no host had anything else
// to say, and the last host, which is the registry itself and not a mirror, before the others.
type hostErrors struct {
	hosts []string
	errs  []error
}

func (e *hostErrors) Error() string {
	texts := make([]string, len(e.errs))
	for i, err := range e.errs {
		texts[i] = e.hosts[i] + ": " + err.Error()
	}
	return strings.Join(texts, "; ")
}

// Is tells of any host that it does not send ranges: it may be of use in another way.
func (e *hostErrors) Is(target error) bool {
	return target == errNoRanges && slices.ContainsFunc(e.errs, func(err error) bool { return errors.Is(err, errNoRanges) })
}

func (e *hostErrors) Unwrap() error {
	for i := len(e.errs) - 1; i >= 0; i-- {
		if !errdefs.IsNotFound(e.errs[i]) {
			return e.errs[i]
		}
	}
	return e.errs[0]
}

// cancelled returns the error of a context that has ended, or nil.
func cancelled(ctx context.Context, object, host string) error {
	if ctx.Err() == nil {
		return nil
	}
	err := ctx.Err()
	if cause := context.Cause(ctx); !errors.Is(cause, err) {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	return &Error{Host: host, Object: object, Err: err}
}
