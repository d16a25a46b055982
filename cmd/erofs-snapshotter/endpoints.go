package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"golang.org/x/sync/errgroup"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/telemetry"
	"github.com/erofs-snapshotter/erofs-snapshotter/config"
)

// endpoints are what the daemon listens on.
type endpoints struct {
	containerd, admin net.Listener
	metrics           net.Listener // nil without metrics.address
}

// listenAll opens them, so that what is taken already is found before anything is served.
func listenAll(cfg config.Config) (e endpoints, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, e.close())
		}
	}()
	if e.containerd, err = listen(cfg.Address); err != nil {
		return e, err
	}
	if e.admin, err = listen(cfg.AdminAddress()); err != nil {
		return e, err
	}
	if cfg.Metrics.Address != "" {
		if e.metrics, err = net.Listen("tcp", cfg.Metrics.Address); err != nil {
			return e, fmt.Errorf("metrics: %w", err)
		}
	}
	return e, nil
}

func (e endpoints) close() error {
	var errs []error
	for _, l := range []net.Listener{e.containerd, e.admin, e.metrics} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

// serve answers on all but containerd's, which runServer does, until ctx ends.
func (e endpoints) serve(ctx context.Context, all *errgroup.Group, watch observer, pprof bool, log *slog.Logger) {
	var metrics http.Handler = telemetry.Handler(watch.metrics, log)
	cache := transfers{layers: watch.sn.Layers(), watcher: watch.demand.watcher, log: log}
	all.Go(func() error {
		return admin.Serve(ctx, e.admin, admin.Options{
			Status: watch.status, Map: watch.fillMap, Export: cache.export, Import: cache.imports, Metrics: metrics, Pprof: pprof, Log: log,
		})
	})
	if e.metrics != nil {
		all.Go(func() error { return admin.Serve(ctx, e.metrics, admin.Options{Metrics: metrics, Log: log}) })
	}
}
