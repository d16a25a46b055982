package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/erofs-snapshotter/erofs-snapshotter/config"
	"github.com/erofs-snapshotter/erofs-snapshotter/fsbackend/probe"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/cachefiles"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/fanotify"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
)

// onDemandReport is what check found about loading on demand besides the feature.
type onDemandReport struct {
	// Transport is how the kernel would ask for missing data: fanotify or fscache. Why says why it is that.
	Transport string      `json:"transport"`
	Why       string      `json:"why"`
	Keeper    keeperFound `json:"keeper"`
	// Trust are the repositories whose images may be loaded on demand; TrustsAll says that these are all there are.
	Trust     []string `json:"trust"`
	TrustsAll bool     `json:"trustsAll"`
	// OpenFiles is the limit of keeper and daemon, the lower one; while they do not run, of this process.
	OpenFiles uint64 `json:"openFiles"`
	processes []int  // keeper and daemon, if they run
}

// keeperFound is whether a keeper answers, and if not, why.
type keeperFound struct {
	Address string `json:"address"`
	Answers bool   `json:"answers"`
	Error   string `json:"error,omitempty"`
	PID     int    `json:"pid,omitempty"`
	Version string `json:"version,omitempty"`
	Held    int    `json:"held"`
	Device  bool   `json:"device,omitempty"` // it holds /dev/cachefiles
}

// allowsOnDemand says whether the configuration allows layers to be loaded on demand. The kernel is not asked if it says no, because from Linux 7.2
// on that sets a taint flag.
func allowsOnDemand(cfg config.Config) error {
	var off string
	switch {
	case !cfg.Lazy.Enabled:
		off = "lazy.enabled is false"
	case !cfg.Remote.Enabled:
		off = "remote.enabled is false"
	case cfg.Lazy.Mode == modeEager:
		off = "lazy.mode is eager"
	default:
		return nil
	}
	return fmt.Errorf("%w: %s", probe.ErrNotSupported, off)
}

// checkOnDemand adds to a report whether layers can be loaded on demand, which is no condition of anything.
func (r *hostReport) checkOnDemand(ctx context.Context, cfg config.Config) error {
	dir, err := existingDir(cfg.Root)
	if err != nil {
		return err
	}
	if err := allowsOnDemand(cfg); err != nil {
		r.Features = append(r.Features, newFeature(featureOnDemand, err))
		return nil
	}
	transport, err := chooseTransport(cfg.Lazy.Mode, dir, true)
	report := newOnDemandReport(ctx, cfg)
	if err == nil && transport == modeFscache {
		err = othersWithCache(cachefiles.Holders(), append(report.processes, os.Getpid()))
	}
	r.Features = append(r.Features, newFeature(featureOnDemand, err))
	if err == nil {
		r.OnDemand = report
		r.OnDemand.explain(cfg.Lazy.Mode, transport, dir)
		r.Advice = append(r.Advice, r.OnDemand.advise()...)
	}
	return nil
}

// explain says why the kernel asks in this way.
func (r *onDemandReport) explain(mode, transport, dir string) {
	r.Transport = transport
	switch {
	case mode != modeAuto:
		r.Why = "lazy.mode says so"
	case transport == transports[0]:
		r.Why = "it works here, and is the best there is"
	default:
		r.Why = fmt.Sprintf("%s does not work here: %v", transports[0], haveTransport[transports[0]](dir))
	}
	if transport == modeFscache { // only who has the device can try it
		r.Why += "; the daemon tries it when it starts, and logs it if that fails"
	}
}

func newOnDemandReport(ctx context.Context, cfg config.Config) *onDemandReport {
	r := &onDemandReport{
		Keeper: keeperFound{Address: cfg.KeeperAddress()},
		Trust:  cfg.Lazy.Trust, TrustsAll: slices.Contains(cfg.Lazy.Trust, "*"),
	}
	if k, err := keeper.Status(ctx, r.Keeper.Address); err != nil {
		r.Keeper.Error = err.Error()
	} else {
		r.Keeper.Answers, r.Keeper.PID, r.Keeper.Version, r.Keeper.Held, r.Keeper.Device = true, k.PID, k.Version, len(k.Names), k.Device != ""
		r.processes = []int{k.PID, k.DaemonPID}
		r.OpenFiles = openFiles(r.processes)
		return r
	}
	r.OpenFiles = openFiles([]int{os.Getpid()})
	return r
}

// othersWithCache is an error if processes that are not ours have the host's cache of files.
func othersWithCache(holders []cachefiles.Holder, ours []int) error {
	var others []string
	for _, h := range holders {
		if !slices.Contains(ours, h.PID) {
			others = append(others, h.String())
		}
	}
	if len(others) == 0 {
		return nil
	}
	return fmt.Errorf("%w: fscache: /dev/cachefiles is used by %s, and a host has one cache of files: stop that; but if it is this "+
		"daemon or its keeper, which do not answer then, see docs/keeper.md", probe.ErrNotSupported, strings.Join(others, ", "))
}

// openFiles is the lowest limit of those processes that are there. Keeper and daemon raise theirs as far as it goes, so the hard limit counts.
func openFiles(processes []int) (lowest uint64) {
	for _, pid := range processes {
		var limit unix.Rlimit
		if pid > 0 && unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit) == nil && (lowest == 0 || limit.Max < lowest) {
			lowest = limit.Max
		}
	}
	return lowest
}

// advise says what to change for loading on demand, which works here otherwise.
func (r *onDemandReport) advise() (advice []string) {
	if !r.Keeper.Answers {
		advice = append(advice, "layers are loaded on demand only while the keeper runs: systemctl enable --now erofs-snapshotter-keeper; "+
			"without systemd the daemon starts it")
	}
	if r.OpenFiles < maxWatched*fanotify.FilesPerGroup {
		advice = append(advice, fmt.Sprintf("the limit of open files allows about %d incomplete layers: set LimitNOFILE= of the units, or ulimit -n, "+
			"to %d or more", r.OpenFiles/fanotify.FilesPerGroup, maxWatched*fanotify.FilesPerGroup))
	}
	return advice
}

func (r *onDemandReport) writeText(p *printer) {
	p.line("missing data would be asked for by %s: %s", r.Transport, r.Why)
	k := r.Keeper
	if k.Answers {
		device := ""
		if k.Device {
			device = " and the kernel's cache"
		}
		p.line("keeper at %s: process %d, version %s, holds %d incomplete layers%s", k.Address, k.PID, k.Version, k.Held, device)
	} else {
		p.line("the keeper does not answer\n  %s", k.Error)
	}
	p.line("limit of open files: %d, enough for about %d incomplete layers", r.OpenFiles, r.OpenFiles/fanotify.FilesPerGroup)
	switch {
	case r.TrustsAll:
		p.line("loaded on demand: images of all repositories. What such a layer contains is believed before all of it was read: on a node that\n" +
			"  several parties share, set lazy.trust to the repositories that you trust")
	case len(r.Trust) == 0:
		p.line("loaded on demand: nothing, because lazy.trust is empty")
	default:
		p.line("loaded on demand: images of %s", strings.Join(r.Trust, ", "))
	}
}
