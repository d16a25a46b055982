package main

import (
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/telemetry"
	"github.com/erofs-snapshotter/erofs-snapshotter/config"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/registry"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/remote"
)

// observer says what the daemon has and does, for status and metrics.
type observer struct {
	cfg     config.Config
	started time.Time
	sn      *snapshotter.Snapshotter
	client  *registry.Client // nil if layers are not pulled from registries
	demand  *demand
}

func (o observer) status(ctx context.Context) (admin.Status, error) {
	layers, err := o.layers(ctx)
	if err != nil {
		return admin.Status{}, err
	}
	s := admin.Status{
		Version:   buildVersion(),
		Started:   o.started,
		Root:      o.cfg.Root,
		Layers:    layers,
		Pulls:     o.pulls(),
		Fallbacks: map[string]admin.Fallback{},
		Cache:     admin.Cache{KeptBytes: o.sn.KeptBytes(), KeepLimitBytes: o.cfg.Collection.Keep.Bytes},
		Registry:  map[string]admin.Host{},
	}
	for name, h := range o.hosts() {
		s.Registry[name] = admin.Host{Requests: h.Requests, Retries: h.Retries, Failures: failures(h), FetchedBytes: h.Bytes, Breaker: h.Breaker}
	}
	for _, l := range layers {
		s.Cache.DiskBytes += l.DiskBytes
	}
	s.Keeper = o.keeper(ctx)
	if s.Keeper != nil {
		s.LazyFallbacks = map[string]admin.Fallback{}
		for reason, f := range o.lazyFallbacks() {
			s.LazyFallbacks[string(reason)] = admin.Fallback(f)
		}
	}
	for reason, f := range o.sn.Remote().Fallbacks() {
		s.Fallbacks[string(reason)] = admin.Fallback{Count: f.Count, Time: f.Time, Image: f.Image, Cause: f.Cause}
	}
	return s, nil
}

// hosts are the registries and mirrors that were asked.
func (o observer) hosts() map[string]registry.HostStats {
	if o.client == nil {
		return nil
	}
	return o.client.Stats().Hosts
}

// failures adds up those of all kinds.
func failures(h registry.HostStats) (n int64) {
	for _, kind := range h.Failures {
		n += kind
	}
	return n
}

// layers are those on disk and then those in the making.
func (o observer) layers(ctx context.Context) ([]admin.Layer, error) {
	uses, err := o.sn.LayerUses(ctx)
	if err != nil {
		return nil, err
	}
	layers := make([]admin.Layer, 0, len(uses))
	current, orphans := o.reports()
	for _, u := range uses {
		usage, err := o.sn.Layers().Usage(ctx, u.ID)
		if err != nil {
			continue // it has just gone
		}
		l := admin.Layer{
			Instance: string(u.ID), Digest: u.Layer.String(), DiffID: u.DiffID.String(), Kind: string(u.Kind), State: admin.Complete,
			DiskBytes: usage.Bytes, Source: u.Source, References: u.References, Created: u.Created, Mounted: u.Mounted,
		}
		if u.Unsynced {
			l.State = admin.Unsynced
		}
		if u.Lazy != nil {
			r := current[string(u.ID)]
			l.Lazy = lazyOf(u.Instance, r)
			if u.Partial() {
				l.State = admin.Partial
				if r != nil {
					l.DiskBytes = r.Progress.PresentBytes
				}
			}
			if l.Source == "" {
				l.Source = u.Lazy.Images[0]
			}
		}
		layers = append(layers, l)
	}
	layers = append(layers, o.leftovers(orphans)...)
	sizes := map[digest.Digest]int64{}
	for _, p := range o.sn.Remote().Pulls() {
		for _, l := range p.Layers {
			sizes[l.Digest] = l.Size
		}
	}
	for _, w := range o.sn.Layers().Working() {
		layers = append(layers, admin.Layer{
			Instance: string(w.ID), Digest: w.Layer.String(), Kind: string(layerstore.EROFS), State: admin.Building, Source: w.Source,
			Work: &admin.Work{BlobBytes: sizes[w.Layer], DoneBytes: w.Read, Started: w.Started, Waiters: w.Waiters},
		})
	}
	return layers, nil
}

func (o observer) pulls() []admin.Pull {
	sources := map[digest.Digest]string{}
	for _, inst := range o.sn.Layers().List() {
		sources[inst.Layer] = inst.Source
	}
	working := map[digest.Digest]layerstore.Work{}
	for _, w := range o.sn.Layers().Working() {
		working[w.Layer] = w
	}
	var pulls []admin.Pull
	for _, p := range o.sn.Remote().Pulls() {
		pull := admin.Pull{Image: p.Image, Namespace: p.Namespace, Manifest: p.Manifest.String(), Started: p.Started, Ended: p.Ended}
		for i, l := range p.Layers {
			if passedOver(p.Layers, i) {
				l.State = remote.Done
			}
			layer := admin.PullLayer{Digest: l.Digest.String(), BlobBytes: l.Size, State: string(l.State)}
			switch w, ok := working[l.Digest]; {
			case ok:
				layer.DoneBytes, layer.Source = w.Read, w.Source
			case l.State == remote.Done, l.State == remote.Ready:
				layer.DoneBytes, layer.Source = l.Size, sources[l.Digest]
			}
			pull.Layers = append(pull.Layers, layer)
		}
		pulls = append(pulls, pull)
	}
	return pulls
}

// passedOver says whether containerd had layer i of a pull before, so that nobody asked for it: it goes from the lowest layer up.
func passedOver(layers []remote.PullLayer, i int) bool {
	return layers[i].State == remote.Waiting && slices.ContainsFunc(layers[i+1:], func(l remote.PullLayer) bool { return l.State != remote.Waiting })
}

func (o observer) metrics() telemetry.Metrics {
	built, pulled := o.sn.Layers().Stats(), o.sn.Remote().Stats()
	m := telemetry.Metrics{
		Version:        buildVersion(),
		Layers:         map[telemetry.LayerClass]telemetry.LayerSum{},
		KeptBytes:      o.sn.KeptBytes(),
		KeepLimitBytes: o.cfg.Collection.Keep.Bytes,
		Evicted:        o.sn.Evictions(),
		RemoteLayers:   pulled.Layers,
		Pulls:          map[string]int64{"remote": pulled.Pulls, "local": 0},
		Fallbacks:      map[string]int64{},
		Hosts:          map[string]telemetry.Host{},
		Conversions: telemetry.Conversions{
			Complete: built.Layers, Failed: built.Failed, BlobBytes: built.BlobBytes, TarBytes: built.TarBytes, ImageBytes: built.ImageBytes, Took: built.Took,
		},
	}
	for name, h := range o.hosts() {
		m.Hosts[name] = telemetry.Host{
			Requests: h.Requests, Retries: h.Retries, Failures: failures(h), FetchedBytes: h.Bytes, BreakerOpen: h.Breaker == "open",
		}
	}
	// Without the metadata the other numbers are still worth having.
	layers, _ := o.layers(context.Background())
	for _, l := range layers {
		class := telemetry.LayerClass{Kind: l.Kind, State: l.State}
		sum := m.Layers[class]
		m.Layers[class] = telemetry.LayerSum{Count: sum.Count + 1, DiskBytes: sum.DiskBytes + l.DiskBytes}
		m.References += int64(l.References)
		if l.Mounted {
			m.Mounted++
		}
	}
	m.Lazy = o.lazyMetrics(layers)
	m.Fscache = o.fscacheMetrics()
	for _, p := range o.sn.Remote().Pulls() {
		if p.Ended.IsZero() {
			m.ActivePulls++
		}
	}
	happened := o.sn.Remote().Fallbacks()
	for _, reason := range remote.Reasons() { // also those that have not happened: an increase from nothing is not seen
		m.Fallbacks[string(reason)] = happened[reason].Count
		m.Pulls["local"] += happened[reason].Count
	}
	return m
}
