package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"golang.org/x/sync/semaphore"
)

// login is who we are to one host for one repository: containerd's authorizer, made anew with every challenge, because its bearer
// handler keeps the secret that it was made with, and an error of the token server for ever.
type login struct {
	client      *http.Client // for token servers
	credentials Credentials
	host        string
	timeout     time.Duration // of one request for a token

	// turn lets one ask the token server or the credentials at a time, and all others use the answer. (The authorizer itself
	// does the same for tokens, but with a data race.)
	turn *semaphore.Weighted

	mu         sync.Mutex
	authorizer docker.Authorizer // nil until the host has asked who we are
	generation int               // of authorizer
	refused    bool              // what the credentials returned last was refused
}

// authorize adds the Authorization header that the host wants as far as we know. The generation is to be given to challenged or drop.
func (l *login) authorize(ctx context.Context, req *http.Request) (generation int, err error) {
	if err := l.turn.Acquire(ctx, 1); err != nil {
		return 0, fmt.Errorf("wait for the token of another request to %s: %w", l.host, context.Cause(ctx))
	}
	defer l.turn.Release(1)
	l.mu.Lock()
	authorizer, generation := l.authorizer, l.generation
	l.mu.Unlock()
	if authorizer == nil {
		return generation, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, l.timeout, fmt.Errorf("no answer of the token server within %v", l.timeout))
	defer cancel()
	if err := authorizer.Authorize(ctx, req); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return generation, tokenError(l.host, err)
	}
	return generation, nil
}

// challenged answers a 401 to a request that was authorised by the given generation. refused says that it was the credentials that
// were refused, and not a token that had expired. If another request has been answered in the meantime there is nothing to do.
func (l *login) challenged(ctx context.Context, image string, generation int, resp *http.Response, refused bool) error {
	if err := l.turn.Acquire(ctx, 1); err != nil {
		return err
	}
	defer l.turn.Release(1)
	l.mu.Lock()
	current, refusedBefore := l.generation, l.refused
	l.mu.Unlock()
	if current != generation {
		return nil
	}
	if err := realmsAreSafe(resp); err != nil {
		return err
	}
	var user, secret string
	if l.credentials != nil {
		var err error
		user, secret, err = l.credentials.Get(ctx, image, l.host, refused || refusedBefore)
		if err != nil {
			return fmt.Errorf("credentials for %s: %w: %w", l.host, errdefs.ErrUnauthenticated, scrub(err))
		}
	}
	authorizer := docker.NewDockerAuthorizer(
		docker.WithAuthClient(l.client),
		docker.WithAuthCreds(func(string) (string, string, error) { return user, secret, nil }),
	)
	if err := authorizer.AddResponses(ctx, []*http.Response{resp}); err != nil {
		switch none := user == "" && secret == ""; {
		case none && (refused || refusedBefore):
			return fmt.Errorf("%w: the host refused the credentials and there are no others for it", errdefs.ErrUnauthenticated)
		case none:
			return fmt.Errorf("%w: the host wants credentials and there are none for it", errdefs.ErrUnauthenticated)
		}
		return fmt.Errorf("%w: %w", errdefs.ErrUnauthenticated, scrub(err))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.authorizer, l.refused = authorizer, false
	l.generation++
	return nil
}

// drop forgets the authorizer of the given generation, so that the host asks again.
func (l *login) drop(generation int, refused bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.generation != generation {
		return
	}
	l.authorizer, l.refused = nil, refused
	l.generation++
}

// realmsAreSafe refuses to send secrets in the clear that the host itself would have got encrypted.
func realmsAreSafe(resp *http.Response) error {
	if resp.TLS == nil {
		return nil
	}
	for _, c := range auth.ParseAuthHeader(resp.Header) {
		if strings.HasPrefix(strings.ToLower(c.Parameters["realm"]), "http:") && c.Scheme == auth.BearerAuth {
			return fmt.Errorf("%w: the host names a token server without https", errdefs.ErrPermissionDenied)
		}
	}
	return nil
}

// errTokenRefused says that the token server did not like the credentials.
var errTokenRefused = errors.New("refused by the token server")

// tokenError is an error of Authorize without the address of the request, whose query says more than an operator must see.
func tokenError(host string, err error) error {
	status, ok := errors.AsType[remoteerrors.ErrUnexpectedStatus](err)
	if !ok {
		return fmt.Errorf("token for %s: %w", host, scrub(err))
	}
	switch status.StatusCode {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("token for %s: %w: %w with status %d", host, errdefs.ErrUnauthenticated, errTokenRefused, status.StatusCode)
	}
	return fmt.Errorf("token for %s: token server answered with status %d", host, status.StatusCode)
}
