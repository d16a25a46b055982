package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/config"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
)

// attendCommand is what mount starts: see attendant.go.
func attendCommand() *cli.Command {
	return &cli.Command{
		Name:   "attend",
		Usage:  "answer for mounts whose data are not all here; mount starts it",
		Hidden: true,
		Description: "It ends when their data are all here, or nothing of them is mounted any more.\n\n" +
			"Example:\n\n   erofs-snapshotter attend --root /var/lib/erofs-snapshotter",
		Flags: append(rootFlags(), registryFlags()...),
		Action: func(ctx context.Context, c *cli.Command) error {
			if err := noArguments(c); err != nil {
				return err
			}
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			return attend(ctx, c, cfg)
		},
	}
}

// attend answers for the mounts of a root until there is no need to.
func attend(ctx context.Context, c *cli.Command, cfg config.Config) (err error) {
	ctx, ignoreSignals := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer ignoreSignals()
	log := slog.New(slog.NewTextHandler(c.Root().ErrWriter, nil))
	if err := adoptLibraries(log); err != nil {
		return err
	}
	root := c.String("root")
	lock, err := ownLayers(ctx, root)
	if err != nil {
		return err
	}
	defer lock.Close()
	client := mountRegistry(c, cfg)
	defer client.Close()
	d := newDemand(mountConfig(cfg, root), sources{client: client}, log)
	d.late = true
	store, err := layerstore.Open(root, layerstore.Options{Log: log, Limits: limits(cfg.Limits)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close(), store.Close(), store.DeleteDiscarded()) }()
	d.begin(ctx)
	d.resume(alone{store, log})
	if _, err := fmt.Fprintln(lock, os.Getpid()); err != nil { // from now on it can be told to end
		return err
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- d.run(running) }()
	for ctx.Err() == nil && !d.watcher.Idle() {
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	stop()
	if err := <-ended; err != nil {
		return err
	}
	if d.begun && d.watcher.Idle() {
		endKeeper(d.keeperAddress)
	}
	return nil
}

// alone are the instances of a layer store that nobody else uses.
type alone struct {
	*layerstore.Store
	log *slog.Logger
}

func (a alone) Mismatched(_ context.Context, id layerstore.ID, cause error) {
	a.log.Error("a layer is not what its image says: do not trust this image, and unmount it", "instance", id, "cause", cause)
	if err := a.SetMismatch(id, cause); err != nil {
		a.log.Error("not noted that a layer is not what its image says", "instance", id, "cause", err)
	}
}

// RenewPoisoned leaves it to the next mount command, as all that the store does not do alone.
func (a alone) RenewPoisoned(context.Context) error { return nil }

// CacheLost has nothing to do: only the daemon has a cache.
func (a alone) CacheLost(context.Context) error { return nil }

func (a alone) Gone(dir string) {
	if err := a.DiscardDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.log.Warn("files of a removed layer not deleted", "path", dir, "cause", err)
	}
}

// endKeeper ends the keeper of a root that holds nothing any more. One that does goes on.
func endKeeper(address string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if report, err := keeper.Status(ctx, address); err == nil {
		_ = unix.Kill(report.PID, unix.SIGTERM)
	}
}

// mountConfig is the configuration as it is for the root of mount commands: with a keeper of its own, that is started when there is need.
func mountConfig(cfg config.Config, root string) config.Config {
	cfg.Root = root
	cfg.Keeper.Address = mountKeeper(root)
	cfg.Keeper.Start = true
	return cfg
}

// mountKeeper is the address of the keeper of a root of mounts.
func mountKeeper(root string) string { return filepath.Join(root, "keeper.sock") }

// mountDemand is loading on demand for one command on a root.
type mountDemand struct {
	*demand
	attend []string // arguments of an attendant
	lock   *os.File
}

func newMountDemand(c *cli.Command, cfg config.Config, client *registry.Client, log *slog.Logger) *mountDemand {
	root := c.String("root")
	d := newDemand(mountConfig(cfg, root), sources{client: client}, log)
	d.late = true
	m := &mountDemand{demand: d}
	if c.IsSet("config") {
		m.attend = append(m.attend, "--config", c.String("config"))
	}
	m.attend = append(m.attend, "attend", "--root", root)
	if c.IsSet("hosts-dir") {
		m.attend = append(m.attend, "--hosts-dir", c.String("hosts-dir"))
	}
	return m
}

// locked takes the layers over from an attendant.
func (m *mountDemand) locked(ctx context.Context) (err error) {
	if m.lock, err = ownLayers(ctx, m.root); err != nil {
		return err
	}
	m.begin(ctx)
	return nil
}

func (m *mountDemand) left(inst layerstore.Instance, dir string) {
	m.watcher.Left(string(inst.ID), dir)
}

// closing leaves what is not complete to another attendant. If the command has failed before it knew what that is, as soon as it had told the
// former attendant to end, there has to be one in any case: it ends by itself if there is nothing to do.
func (m *mountDemand) closing(context.Context) error {
	needed := hasLazy(m.root)
	if m.resumed() {
		m.watcher.Sweep()
		needed = !m.watcher.Idle()
	}
	err := m.demand.close()
	if needed {
		err = errors.Join(err, startAttendant(m.root, m.attend))
	} else if m.begun {
		endKeeper(m.keeperAddress)
	}
	if m.lock != nil {
		err = errors.Join(err, m.lock.Close())
	}
	return err
}
