package kubesecrets

import (
	"context"
	"log/slog"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
)

// follow keeps the store equal to the cluster's secrets of its type until ctx ends: the reflector lists, watches, and begins anew after
// errors, with growing delays of up to half a minute.
func follow(ctx context.Context, client dynamic.Interface, into *store, log *slog.Logger) {
	secrets := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "secrets"})
	selector := "type=" + into.secretType
	state := &reachability{log: log.With("type", into.secretType)}
	requests := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = selector
			list, err := secrets.List(ctx, options)
			state.report(ctx, err)
			if err != nil {
				return nil, err // without list: a nil pointer in an interface is not nil
			}
			return list, nil
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = selector
			events, err := secrets.Watch(ctx, options)
			state.report(ctx, err)
			return events, err
		},
	}
	cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(requests, client), &unstructured.Unstructured{}, into,
		cache.ReflectorOptions{Name: into.secretType}).RunWithContext(ctx)
}

// reachability logs when requests begin to fail, and when they work again.
type reachability struct {
	log *slog.Logger

	mu     sync.Mutex
	failed bool // and that was logged
}

// report takes the outcome of a request. A watch that cannot go on where it was is the normal course, and so is a server that does not
// know the newest kind of watch: the reflector then lists.
func (r *reachability) report(ctx context.Context, err error) {
	if ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || apierrors.IsInvalid(err) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil && !r.failed:
		r.log.Warn("image pull secrets of Kubernetes cannot be followed: trying again, with those known so far", "cause", err)
	case err == nil && r.failed:
		r.log.Info("image pull secrets of Kubernetes are followed again")
	}
	r.failed = err != nil
}
