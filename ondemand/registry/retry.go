package registry

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/containerd/errdefs"
)

// policy is how long to go on without a byte.
type policy struct {
	rounds int           // over all hosts
	first  time.Duration // pause between the first two rounds
	most   time.Duration
	budget time.Duration // of all rounds together; an attempt under way is not cut short
	// exchange is how long an answer may take with all logins and redirects before it, if that is more than two stall timeouts.
	exchange time.Duration
}

// defaultPolicy outlives the restart of a registry, and a pull fails within two minutes.
var defaultPolicy = policy{rounds: 10, first: 100 * time.Millisecond, most: 8 * time.Second, budget: time.Minute, exchange: time.Minute}

// attempts decides which host is asked next for an object. It belongs to one goroutine.
//
// Hosts are asked in their order, or beginning with another one than the first (Again), those that fail of late after the others. When each
// has failed, there is a pause and another round.
// A host with a failure that it would repeat is left out; one whose answers break the protocol has a few more tries. When enough bytes have come it forgets the rounds but not who is left out.
type attempts struct {
	object  *object
	order   []*endpoint
	policy  policy
	pause   *backoff.ExponentialBackOff
	left    []*endpoint // of this round
	failed  map[*endpoint]*failure
	after   time.Duration // what the hosts of this round asked for
	round   int
	retries bool // the next attempt follows a failure
	gained  int  // bytes since the rounds were forgotten
	since   time.Time
}

func (c *Client) attempts(ctx context.Context, o *object) *attempts {
	a := &attempts{object: o, order: o.endpoints, policy: c.policy, failed: map[*endpoint]*failure{}}
	if n := timesWrong(ctx); n > 0 && len(o.endpoints) > 0 {
		n %= len(o.endpoints)
		a.order = slices.Concat(o.endpoints[n:], o.endpoints[:n])
	}
	a.pause = &backoff.ExponentialBackOff{
		InitialInterval: a.policy.first, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: a.policy.most,
	}
	a.forget()
	return a
}

// came says that n bytes came.
func (a *attempts) came(n int) {
	if a.gained += n; a.gained >= progressBytes {
		a.forget()
	}
}

// forget begins anew with the rounds.
func (a *attempts) forget() {
	a.round, a.after, a.gained, a.since = 0, 0, 0, time.Now()
	a.pause.Reset()
	a.left = nil
}

// without returns the hosts that are not left out, and not the given one, in the order in which they are asked.
func (a *attempts) without(other *endpoint) []*endpoint {
	return slices.DeleteFunc(slices.Clone(a.order), func(e *endpoint) bool {
		f := a.failure(e)
		return e == other || f != nil && f.lasting
	})
}

// failure returns why a host sends nothing of the object at all, or how it failed last here, or nil.
func (a *attempts) failure(e *endpoint) *failure {
	if f, refuses := a.object.refusals.Load(e); refuses {
		return f.(*failure)
	}
	return a.failed[e]
}

// next returns the host to ask. It waits between rounds. The error is final.
func (a *attempts) next(ctx context.Context) (*endpoint, error) {
	if err := cancelled(ctx, a.object.name, a.object.hosts()); err != nil {
		return nil, err
	}
	if len(a.left) == 0 {
		if err := a.nextRound(ctx); err != nil {
			return nil, err
		}
	}
	i := max(0, slices.IndexFunc(a.left, func(e *endpoint) bool { return e.host.breaker.ready() }))
	ep := a.left[i]
	a.left = slices.Delete(a.left, i, i+1)
	if a.retries {
		ep.host.retries.Add(1)
	}
	return ep, nil
}

// nextRound makes all hosts that are not left out to be asked, after a pause if they were before.
func (a *attempts) nextRound(ctx context.Context) error {
	a.left = a.without(nil)
	if len(a.left) == 0 {
		return a.giveUp()
	}
	if a.round++; a.round == 1 {
		return nil
	}
	wait := max(a.pause.NextBackOff(), a.after)
	a.after = 0
	if a.round > a.policy.rounds || time.Since(a.since)+wait > a.policy.budget {
		return a.giveUp()
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return cancelled(ctx, a.object.name, a.object.hosts())
	}
}

// note records that an attempt failed. A cancelled context is nobody's fault.
func (a *attempts) note(ctx context.Context, ep *endpoint, f *failure) {
	if ctx.Err() != nil {
		return
	}
	ep.host.failed(f)
	if f.strange() && a.object.forgives(ep) {
		f = &failure{kind: f.kind, err: f.err}
	}
	a.failed[ep] = f
	if f.general() {
		a.object.refusals.Store(ep, f)
	}
	a.retries = true
	a.after = max(a.after, f.after)
	if len(a.left) == 0 && a.round == 0 {
		// It failed after bytes had come: the others are asked before it is again.
		a.round = 1
		a.left = a.without(ep)
	}
}

// giveUp returns why the object could not be had.
func (a *attempts) giveUp() error {
	all := &hostErrors{}
	for _, e := range a.object.endpoints {
		if f := a.failure(e); f != nil {
			all.hosts, all.errs = append(all.hosts, e.host.name), append(all.errs, f.err)
		}
	}
	var err error = all
	switch len(all.errs) {
	case 0:
		err = fmt.Errorf("%w: no host that may be asked is configured for %s", errdefs.ErrNotFound, a.object.repository.spec.Hostname())
	case 1:
		err = all.errs[0]
	}
	return &Error{Host: a.object.hosts(), Object: a.object.name, Err: err}
}
