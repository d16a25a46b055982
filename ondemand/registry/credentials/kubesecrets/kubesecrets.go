// Package kubesecrets answers with the image pull secrets of a Kubernetes cluster.
//
// Secrets of the types kubernetes.io/dockerconfigjson and kubernetes.io/dockercfg of all namespaces are listed and then watched. Their
// credentials are kept in memory, parsed, as long as the secret exists; nothing else of a secret is, and nothing is on disk. No
// question waits for the API server: until it was reached nothing is known, and while it is away the answers are those of before.
//
// The keys of a secret are matched as kubelet does: labels of a host may be patterns, and a path limits a key to the repositories
// that begin with it (*.example.com/team). All namespaces' secrets are tried for an image, since a snapshotter is not told for
// which pod it works; kubelet has asked the registry with the pod's own secrets before.
//
// The user of the kubeconfig, or the pod's service account, needs the verbs list and watch for secrets in all namespaces. Tokens and
// certificates in files that the kubeconfig names are read again when they change; the kubeconfig itself is read once.
package kubesecrets

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry/credentials/internal/login"
)

// configRetry is how long Run waits before it looks for a kubeconfig again that was not there: on a new node it is written while
// the node joins its cluster.
const configRetry = 10 * time.Second

// Options say how to reach the cluster.
type Options struct {
	// Kubeconfig is the path of a kubeconfig file. Empty: the service account of the pod that we run in.
	Kubeconfig string
	// Log gets what an operator should know: the API server cannot be reached, or a secret cannot be read. Nil: nothing is logged.
	Log *slog.Logger
}

// Secrets are the image pull secrets of the cluster. They are a source of credentials. Safe for concurrent use.
type Secrets struct {
	opts    Options
	log     *slog.Logger
	answers login.Memory
	stores  []*store // one for each type of secret
}

// New returns secrets that know nothing before Run.
func New(opts Options) *Secrets {
	log := opts.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Secrets{opts: opts, log: log, stores: []*store{
		{secretType: "kubernetes.io/dockerconfigjson", parse: parseConfigJSON, log: log},
		{secretType: "kubernetes.io/dockercfg", parse: parseConfig, log: log},
	}}
}

// Run follows the cluster's secrets until ctx ends, whatever happens to the API server, and returns nil.
func (s *Secrets) Run(ctx context.Context) error {
	client := s.connect(ctx)
	if client == nil {
		return nil
	}
	// The client's own messages may show the object that it did not understand, and that is a secret.
	ctx = klog.NewContext(ctx, logr.Discard())
	var watches sync.WaitGroup
	for _, into := range s.stores {
		watches.Go(func() { follow(ctx, client, into, s.log) })
	}
	watches.Wait()
	return nil
}

// connect returns a client as soon as there is a configuration for one, or nil when ctx ended before.
func (s *Secrets) connect(ctx context.Context) dynamic.Interface {
	logged := false
	for {
		client, err := newClient(s.opts.Kubeconfig)
		if err == nil {
			return client
		}
		if !logged {
			s.log.Warn("image pull secrets of Kubernetes are not known: looking for the configuration again and again",
				"kubeconfig", s.opts.Kubeconfig, "cause", err)
			logged = true
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(configRetry):
		}
	}
}

func newClient(kubeconfig string) (dynamic.Interface, error) {
	var config *rest.Config
	var err error
	if kubeconfig == "" {
		if config, err = rest.InClusterConfig(); err != nil {
			return nil, fmt.Errorf("service account of the pod: %w; outside of a pod a kubeconfig must be given", err)
		}
	} else if config, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	return dynamic.NewForConfig(config)
}

// Get returns a credential of a secret that has a key for host, that with the most specific key first. After a refusal it is that of
// the next secret.
func (s *Secrets) Get(_ context.Context, image, host string, refused bool) (user, secret string, err error) {
	target, err := login.For(image, host)
	if err != nil {
		return "", "", err
	}
	found := s.match(target)
	l := s.answers.Choose(target, refused, len(found), func(i int, _ bool) login.Login { return found[i] })
	return l.User, l.Secret, nil
}

// match returns the credentials of all secrets for t. Those with equal keys are ordered by the names of their secrets.
func (s *Secrets) match(t login.Target) []login.Login {
	var found []candidate
	for _, store := range s.stores {
		found = store.match(t, found)
	}
	slices.SortStableFunc(found, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.Key, a.Key), cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
	})
	logins := make([]login.Login, len(found))
	for i, c := range found {
		logins[i] = c.Login
	}
	return logins
}
