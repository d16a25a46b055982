package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/config"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/fanotify"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/watch"
)

// mayStartKeeper says whether the daemon starts a keeper itself. systemd would end one that a unit has started with the unit.
func mayStartKeeper(cfg config.Config) bool {
	return cfg.Keeper.Start && (os.Getenv("INVOCATION_ID") == "" || cfg.Keeper.Address == mountKeeper(cfg.Root))
}

// startKeeper starts a keeper that outlives this process: the program beside this one.
func (d *demand) startKeeper(ctx context.Context, patience time.Duration) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log := os.Stderr
	if d.late { // the terminal of a command is not for what goes on later
		if log, err = os.OpenFile(filepath.Join(d.root, "keeper.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
			return err
		}
		defer log.Close()
	}
	program := filepath.Join(filepath.Dir(self), "erofs-snapshotter-keeper")
	return keeper.Start(ctx, d.keeperAddress, program, log, "--patience", patience.String())
}

// begin serves what a keeper holds, before anything in the root is touched. Whether anything can be loaded on demand
// on this host is in impossible then.
func (d *demand) begin(ctx context.Context) {
	lazy := hasLazy(d.root)
	switch {
	case !d.enabled && !lazy:
		d.impossible = errors.New("lazy.enabled or remote.enabled is false, or lazy.mode is eager")
	case lazy || !d.late:
		d.beginNow(ctx)
	}
}

func (d *demand) beginNow(ctx context.Context) {
	d.begun = true
	var running context.Context
	running, d.stop = context.WithCancel(context.WithoutCancel(ctx))
	d.running.Go(func() { d.syncer.Run(running) })
	d.running.Go(func() {
		if err := d.engine.Run(running); err != nil && running.Err() == nil {
			d.log.Error("data are not loaded on demand any more", "cause", err)
		}
	})
	d.raiseLimits()
	var transport string
	if transport, d.impossible = chooseTransport(d.mode, d.root, !d.late); d.impossible != nil && hasLazy(d.root) {
		transport = anyTransport(d.mode, d.root, !d.late)
	}
	if transport == modeFscache {
		d.watcher.UseCache()
	}
	if d.impossible != nil {
		d.log.Warn("layers are not loaded on demand here", "cause", d.impossible)
		if !hasLazy(d.root) {
			return
		}
		// It was possible once, and the cause may be one that passes: what a keeper holds has to be answered.
	}
	d.connects = true
	ctx, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	switch err := d.watcher.Connect(ctx); {
	case errors.Is(err, watch.ErrUnsure):
		d.unsettled.Store(true)
		d.log.Error("the keeper does not answer; layers whose data are not all here have to wait for it, and others are pulled as a whole", "cause", err)
	case err != nil:
		d.log.Warn("no keeper; layers are pulled as a whole until there is one", "cause", err)
	}
}

// connectWait is how long the daemon waits for a keeper at its start. It is longer than the keeper takes to end a former daemon that hangs;
// meanwhile no container can be started, also from layers that need no keeper.
const connectWait = 20 * time.Second

// raiseLimits makes room for descriptors and groups.
func (d *demand) raiseLimits() {
	level := slog.LevelWarn
	if d.late { // a few mounts
		level = slog.LevelDebug
	}
	if err := fanotify.RaiseLimits(maxWatched); err != nil {
		d.log.Log(context.Background(), level, "the limits of this process allow fewer incomplete layers at a time than could be needed", "layers", maxWatched, "cause", err)
	}
}

// maxWatched is how many incomplete layers a host should be able to have mounted.
const maxWatched = 4096

// canWatch says whether somebody can answer for more layers.
func (d *demand) canWatch() error {
	d.beginning.Lock()
	if !d.begun && d.impossible == nil {
		d.beginNow(context.Background())
	}
	d.beginning.Unlock()
	if d.impossible != nil {
		return d.impossible
	}
	return d.watcher.Ready()
}

// hasLazy says whether there are instances below a root for which somebody must answer.
func hasLazy(root string) bool {
	for _, pattern := range []string{"layers", "orphans"} {
		if found, _ := filepath.Glob(filepath.Join(root, pattern, "*", blob.PresentName)); len(found) > 0 {
			return true
		}
	}
	return false
}
