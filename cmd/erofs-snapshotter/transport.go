package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/erofs-snapshotter/erofs-snapshotter/config"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/fscache"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/probe"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/cachefiles"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/fanotify"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/watch"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter"
)

// Values of lazy.mode. Two of them are also how the kernel asks for missing data.
const (
	modeAuto     = "auto"
	modeFanotify = "fanotify"
	modeFscache  = "fscache"
	modeEager    = "eager"
)

// transports are how the kernel can ask, the best first: over fscache, what is read lies on the disk twice.
var transports = []string{modeFanotify, modeFscache}

// haveTransport says whether the kernel can ask in this way for data of files in dir.
var haveTransport = map[string]func(dir string) error{modeFanotify: haveFanotify, modeFscache: haveFscache}

// chooseTransport finds out how the kernel can ask for missing data of files in dir; the error says why it cannot. fscache is for the daemon only:
// the host has one.
func chooseTransport(mode, dir string, daemon bool) (string, error) {
	if mode == modeEager {
		return "", fmt.Errorf("%w: lazy.mode is eager", probe.ErrNotSupported)
	}
	var errs []error
	for _, t := range transports {
		if mode != modeAuto && mode != t {
			continue
		}
		err := error(nil)
		if t == modeFscache && !daemon {
			err = fmt.Errorf("%w: only the daemon mounts over fscache", probe.ErrNotSupported)
		} else {
			err = haveTransport[t](dir)
		}
		if err == nil {
			return t, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", t, err))
	}
	return "", errors.Join(errs...)
}

// anyTransport is how the kernel can ask where mode is not possible, "" if in no way: layers that are lazy already have to be mounted again, whatever
// the mode of new ones is.
func anyTransport(mode, dir string, daemon bool) string {
	if mode == modeAuto {
		return ""
	}
	t, _ := chooseTransport(modeAuto, dir, daemon) // nothing is lost: without it their mount says why
	return t
}

func haveFanotify(dir string) error {
	if err := probe.HaveFileBacked(dir); err != nil {
		return err
	}
	err := fanotify.Probe(dir)
	if errors.Is(err, fanotify.ErrNotSupported) {
		return fmt.Errorf("%w: %w", probe.ErrNotSupported, err)
	}
	return err
}

func haveFscache(dir string) error {
	if err := probe.HaveFscache(); err != nil {
		return err
	}
	err := cachefiles.CheckDir(dir)
	if errors.Is(err, cachefiles.ErrUnfit) {
		return fmt.Errorf("%w: %w", probe.ErrNotSupported, err)
	}
	return err
}

// cacheOptions say how the kernel's cache of files is used.
func cacheOptions(cfg config.Config) watch.CacheOptions {
	meta, data := fscache.TrialImage()
	return watch.CacheOptions{
		Dir:       filepath.Join(cfg.Root, "fscache"),
		Limits:    cachefiles.Limits{Run: cfg.Fscache.Run, Cull: cfg.Fscache.Cull, Stop: cfg.Fscache.Stop},
		Find:      func(instance string) string { return filepath.Join(cfg.Root, "layers", instance) },
		TrialMeta: meta, TrialData: data,
		Try: func(ctx context.Context, c watch.Cookies) error { return fscache.Try(ctx, fsbackend.Cookies(c)) },
	}
}

// answers is a Watcher as the snapshotter sees it.
type answers struct{ *watch.Watcher }

// Mount implements snapshotter.OnDemand.
func (a answers) Mount(ctx context.Context, instance string) (*snapshotter.Answering, error) {
	m, err := a.Watcher.Mount(ctx, instance)
	if m == nil {
		return nil, err
	}
	how := &snapshotter.Answering{Check: m.Check}
	if m.Cookies != nil {
		c := fsbackend.Cookies(*m.Cookies)
		how.Cookies = &c
	}
	return how, err
}

// stale are the mounts below a directory over a cache that has gone.
func (a answers) stale(dir string) ([]string, error) { return fscache.Stale(dir, a.Domain()) }
