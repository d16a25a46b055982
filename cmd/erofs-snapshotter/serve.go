package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/telemetry"
	"github.com/erofs-snapshotter/erofs-snapshotter/config"
	"github.com/erofs-snapshotter/erofs-snapshotter/converter"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/file"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/fscache"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/content"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/differ"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// stopGrace is how long requests in flight may go on after a signal. A Prepare or Commit takes milliseconds; a conversion of a
// large layer is cut short, and its pull fails and can be repeated. systemd's TimeoutStopSec in deploy/ is longer.
const stopGrace = 10 * time.Second

// mountModes are the values of mount.mode.
var mountModes = map[string]file.Mode{"auto": file.Auto, "file": file.File, "loop": file.Loop}

// directIO are the values of mount.direct_io.
var directIO = map[string]file.Direct{"never": file.Never, "cold": file.WhenCold, "always": file.Always}

func serveCommand() *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "run the daemon",
		Description: "Serves containerd's Snapshots and Diff services, CRI's image service and gRPC health on one unix socket, and status and\n" +
			"metrics on another, until SIGTERM or SIGINT.\n" +
			"Containers go on running while it is stopped. Needs root.\n\n" +
			"Example:\n\n   erofs-snapshotter --config /etc/erofs-snapshotter/config.toml serve",
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := noArguments(c); err != nil {
				return err
			}
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			log := newLogger(c.Root().ErrWriter, cfg.Log)
			if err := adoptLibraries(log); err != nil {
				return err
			}
			return serve(ctx, cfg, log)
		},
	}
}

// serve runs the daemon until a signal comes or something fails. What a crash left is repaired before the socket exists.
func serve(ctx context.Context, cfg config.Config, log *slog.Logger) (err error) {
	ctx, ignoreSignals := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer ignoreSignals()
	// Modes of files in containers' upper directories must not depend on who started the daemon.
	unix.Umask(0o022)

	if os.Geteuid() != 0 {
		return errors.New("serve needs root, for mounts")
	}
	lock, err := lockRoot(cfg.Root)
	if err != nil {
		return err
	}
	defer lock.Close()

	if err := checkBeforeServing(cfg, log); err != nil {
		return err
	}
	stopTracing, err := telemetry.StartTracing(ctx, telemetry.TraceOptions{Endpoint: cfg.Tracing.Endpoint, Version: buildVersion(), Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopTracing(context.WithoutCancel(ctx))) }()
	store, err := content.New(cfg.Containerd.Address, cfg.Containerd.StallTimeout.Duration)
	if err != nil {
		return err
	}
	defer store.Close()
	from, err := newSources(cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.close()) }()
	onDemand := newDemand(cfg, from, log)
	defer func() { err = errors.Join(err, onDemand.close()) }()
	// Containers may be waiting for their data, so this comes before all else.
	onDemand.begin(ctx)
	sn, err := snapshotter.New(ctx, snapshotterOptions(cfg, store, from, onDemand, log))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, onDemand.close(), sn.Close()) }()
	onDemand.resume(served{sn.Layers(), sn})

	endpoints, err := listenAll(cfg)
	if err != nil {
		return err
	}
	log.Info("serving", "version", buildVersion(), "address", cfg.Address, "root", cfg.Root)
	server, healthServer := newServer(sn, differ.New(sn, sn.Layers(), store), from, log)
	watch := observer{cfg: cfg, started: time.Now(), sn: sn, client: from.client, demand: onDemand}
	work := func(ctx context.Context) error {
		all, ctx := errgroup.WithContext(ctx)
		all.Go(func() error { return sn.Run(ctx) })
		all.Go(func() error { return from.run(ctx) })
		all.Go(func() error { return onDemand.run(ctx) })
		endpoints.serve(ctx, all, watch, cfg.Admin.Pprof, log)
		return all.Wait()
	}
	// A second signal ends the process at once.
	context.AfterFunc(ctx, ignoreSignals)
	return runServer(ctx, server, healthServer, endpoints.containerd, work, log)
}

func snapshotterOptions(cfg config.Config, store *content.Store, from sources, onDemand *demand, log *slog.Logger) snapshotter.Options {
	grace := cfg.Collection.Grace.Duration
	if grace == 0 {
		grace = -1 // zero means the default there
	}
	opts := snapshotter.Options{
		Root:     cfg.Root,
		Backend:  fscache.New(file.New(file.Options{Mode: mountModes[cfg.Mount.Mode], Direct: directIO[cfg.Mount.DirectIO]})),
		Content:  store,
		Registry: from.registry(),
		Lazy:     onDemand.loader,
		OnDemand: answers{onDemand.watcher},
		Stale:    answers{onDemand.watcher}.stale,
		Log:      log,
		Grace:    grace,
		Keep:     cfg.Collection.Keep.Bytes,
		Layers: layerstore.Options{
			Limits:    limits(cfg.Limits),
			Parallel:  cfg.Conversion.Parallel,
			Memory:    cfg.Conversion.Memory.Bytes,
			SyncAfter: cfg.Conversion.Sync == "after",
			Left:      func(inst layerstore.Instance, dir string) { onDemand.watcher.Left(string(inst.ID), dir) },
		},
	}
	if cfg.Lazy.Startup {
		opts.Startup = readStartup
	}
	return opts
}

func limits(l config.Limits) converter.Limits {
	return converter.Limits{
		FileBytes:     l.FileSize.Bytes,
		LayerBytes:    l.LayerSize.Bytes,
		StreamBytes:   l.StreamSize.Bytes,
		Inodes:        l.Inodes,
		MetadataBytes: l.MetadataSize.Bytes,
	}
}

// checkBeforeServing refuses to start where images certainly cannot be mounted. Not knowing is no reason: with a full disk the
// kernel cannot be asked, and that is when images must be removable.
func checkBeforeServing(cfg config.Config, log *slog.Logger) error {
	report, err := checkHost(cfg)
	if err != nil {
		return err
	}
	switch {
	case report.Usable:
		log.Info("host checked", "mount_mode", report.Mode, "filesystem", report.Filesystem)
		for _, advice := range report.Advice {
			log.Warn("host checked", "advice", advice)
		}
	case report.unknown():
		for _, f := range report.Features {
			if f.Answer == "unknown" {
				log.Warn("could not find out whether images can be mounted", "feature", f.Name, "cause", f.Reason)
			}
		}
	default:
		var text strings.Builder
		_ = report.writeText(&text)
		return fmt.Errorf("images cannot be mounted on this host\n%s", strings.TrimSpace(text.String()))
	}
	return nil
}

func newServer(sn *snapshotter.Snapshotter, d *differ.Differ, from sources, log *slog.Logger) (*grpc.Server, *health.Server) {
	server := grpc.NewServer(
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
		grpc.UnaryInterceptor(logUnary(log)),
		grpc.StreamInterceptor(logStream(log)),
		grpc.WaitForHandlers(true), // what they use is closed next
	)
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(sn))
	diffapi.RegisterDiffServer(server, diffservice.FromApplierAndComparer(d, d))
	if from.cri != nil {
		from.cri.Register(server)
	}
	healthServer := health.NewServer()
	healthapi.RegisterHealthServer(server, healthServer)
	return server, healthServer
}

// runServer serves on the listener and runs the background work, until ctx ends or one of the two fails. Both have ended when it
// returns.
func runServer(ctx context.Context, server *grpc.Server, healthServer *health.Server, listener net.Listener, work func(context.Context) error, log *slog.Logger) error {
	workCtx, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	served, worked := make(chan error, 1), make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	go func() { worked <- work(workCtx) }()
	notify(log, daemon.SdNotifyReady)

	var failure error
	serving, working := true, true
	select {
	case <-ctx.Done():
		log.Info("stopping")
	case err := <-served:
		serving, failure = false, fmt.Errorf("serve %s: %w", listener.Addr(), err)
	case err := <-worked:
		working = false
		if err == nil {
			err = errors.New("ended without a reason")
		}
		failure = fmt.Errorf("background work: %w", err)
	}
	notify(log, daemon.SdNotifyStopping)
	healthServer.Shutdown()
	stopServer(server, log)
	if serving {
		<-served
	}
	stopWork()
	if working {
		if err := <-worked; err != nil && !errors.Is(err, context.Canceled) {
			failure = errors.Join(failure, fmt.Errorf("background work: %w", err))
		}
	}
	return failure
}

// stopServer closes the socket at once, and cancels the requests that are still in flight after stopGrace.
func stopServer(server *grpc.Server, log *slog.Logger) {
	timer := time.AfterFunc(stopGrace, func() {
		log.Warn("requests are still in flight and are cancelled", "after", stopGrace)
		server.Stop()
	})
	defer timer.Stop()
	server.GracefulStop()
}

// notify tells systemd, if that started us.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd was not notified", "state", state, "error", err)
	}
}
