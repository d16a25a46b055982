package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/admin"
	"github.com/erofs-snapshotter/erofs-snapshotter/cmd/erofs-snapshotter/internal/telemetry"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/keeper"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/watch"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/layerstore"
	"github.com/erofs-snapshotter/erofs-snapshotter/snapshotter/lazy"
)

// lazyOf describes a lazy instance of the store. r is nil if it is not open: all its data are here, and were checked.
func lazyOf(inst layerstore.Instance, r *watch.Report) *admin.Lazy {
	l := &admin.Lazy{Format: inst.Lazy.Format, Verified: admin.VerifyPending}
	switch {
	case inst.Lazy.Mismatch != "":
		l.Verified = admin.VerifyFailed + inst.Lazy.Mismatch
	case !inst.Lazy.Verified.IsZero():
		l.Verified = admin.VerifyPassed
	}
	if r == nil {
		l.Bytes = inst.Lazy.FinalBytes
		l.PresentBytes = l.Bytes
		return l
	}
	l.Bytes, l.PresentBytes = r.Progress.Bytes, r.Progress.PresentBytes
	l.Extents, l.PresentExtents = r.Progress.Extents, r.Progress.PresentExtents
	q, f := &r.Requests, r.Fill
	l.Faults, l.Hits, l.Failed = int64(q.Events), int64(q.Hits.Count), int64(q.Failed)
	l.DemandedBytes, l.FilledBytes, l.Corrupt = int64(q.Asked), f.FilledBytes, f.Corrupt
	l.FetchedBytes = admin.Fetched{Fault: f.FetchedBytes, Prefetch: f.PrefetchedBytes, Background: f.BackgroundBytes}
	l.Latency = admin.Latency{
		P50: q.Fills.Quantile(0.5).Seconds(), P90: q.Fills.Quantile(0.9).Seconds(), P99: q.Fills.Quantile(0.99).Seconds(), Max: q.Fills.Quantile(1).Seconds(),
	}
	for _, in := range q.InFlight {
		l.InFlight = append(l.InFlight, admin.Request{OffsetBytes: in.Offset, LengthBytes: in.Length, Since: in.Since})
	}
	if f.LastError != nil {
		l.LastError, l.LastErrorTime = f.LastError.Error(), f.FailedAt
	}
	l.Orphan = r.Orphan != ""
	return l
}

// reports are those of the watcher, by instance; those of orphans apart.
func (o observer) reports() (current map[string]*watch.Report, orphans []*watch.Report) {
	current = map[string]*watch.Report{}
	for _, r := range o.demand.watcher.Reports() {
		if r.Orphan != "" {
			orphans = append(orphans, &r)
		} else {
			current[r.Name] = &r
		}
	}
	return current, orphans
}

// leftovers are the layers that are not in the store any more, but that containers read from: orphans, and poisoned ones.
func (o observer) leftovers(orphans []*watch.Report) []admin.Layer {
	var layers []admin.Layer
	for _, r := range orphans {
		inst, err := layerstore.ReadInstance(r.Orphan)
		if err != nil || inst.Lazy == nil {
			continue // it has just gone
		}
		layers = append(layers, admin.Layer{
			Instance: r.Name, Digest: inst.Layer.String(), Kind: string(layerstore.EROFS), State: admin.Partial, Created: inst.Created, Mounted: true, Source: inst.Lazy.Images[0],
			DiskBytes: r.Progress.PresentBytes, Lazy: lazyOf(inst, r),
		})
	}
	for _, p := range o.sn.Poisoned() {
		l := admin.Layer{
			Instance: string(p.Instance.ID), Digest: p.Instance.Layer.String(), Kind: string(layerstore.EROFS), State: admin.Partial, Mounted: true,
			Lazy: &admin.Lazy{Verified: admin.VerifyPending, Orphan: true, Poisoned: true, Users: p.Users},
		}
		if from := p.Instance.Lazy; from != nil {
			l.Lazy.Format, l.Source, l.Created = from.Format, from.Images[0], p.Instance.Created
		}
		layers = append(layers, l)
	}
	return layers
}

// fillMap answers status --map.
func (o observer) fillMap(_ context.Context, instance string, cells int) ([]float64, error) {
	inst, err := o.sn.Layers().Get(layerstore.ID(instance))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", admin.ErrNoMap, err)
	}
	if inst.Lazy == nil {
		return nil, fmt.Errorf("layer %s was pulled as a whole: %w", inst.Layer, admin.ErrNoMap)
	}
	filled, err := o.demand.watcher.Map(instance, cells)
	if err != nil && !inst.Partial() {
		return fullMap(cells), nil
	}
	return filled, err
}

// keeper says how the keeper is; nil if there need be none.
func (o observer) keeper(ctx context.Context) *admin.Keeper {
	if o.demand.impossible != nil {
		return nil
	}
	k := &admin.Keeper{Address: o.cfg.KeeperAddress()}
	k.Connected, k.Since = o.demand.watcher.Keeper()
	report := o.demand.keeperReport(ctx, k.Address)
	k.Pid, k.Held, k.Device, k.Denied = report.PID, len(report.Names), report.Device != "", report.Denied
	return k
}

// keeperReports remembers what the keeper said last: it is not asked for each of many questions, and counts do not go back when it is away.
type keeperReports struct {
	mu   sync.Mutex
	at   time.Time
	last keeper.Report
}

const (
	// keeperReportAge is how old an answer may be.
	keeperReportAge = time.Second
	// keeperReportWait is how long status and metrics wait for one: a keeper that does not answer must not keep them from saying so.
	keeperReportWait = 2 * time.Second
)

func (k *keeperReports) keeperReport(ctx context.Context, address string) keeper.Report {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.at) > keeperReportAge {
		ctx, cancel := context.WithTimeout(ctx, keeperReportWait)
		defer cancel()
		if report, err := keeper.Status(ctx, address); err == nil {
			k.last = report
		}
		k.at = time.Now()
	}
	return k.last
}

// corruptIndexes counts indexes that came corrupt.
func (o observer) corruptIndexes() int64 {
	if o.demand.loader == nil {
		return 0
	}
	return o.demand.loader.CorruptIndexes()
}

func (o observer) lazyFallbacks() map[lazy.Reason]lazy.Fallback {
	if o.demand.loader == nil || !o.demand.enabled {
		return nil
	}
	return o.demand.loader.Fallbacks()
}

// latencyBounds are those of the histogram of filled requests.
var latencyBounds = []time.Duration{
	time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second,
	30 * time.Second, time.Minute,
}

// lazyMetrics adds up the lazy layers.
func (o observer) lazyMetrics(layers []admin.Layer) *telemetry.Lazy {
	k := o.keeper(context.Background())
	if k == nil {
		return nil
	}
	totals := o.demand.watcher.Totals()
	f, q := totals.Fill, &totals.Requests
	m := &telemetry.Lazy{
		Layers: map[string]int64{admin.Partial: 0, admin.Complete: 0},
		Faults: int64(q.Events), Hits: int64(q.Hits.Count), Failed: int64(q.Failed),
		Refused: int64(q.Refused), Notices: int64(q.Notices), Inherited: int64(q.Inherited), Late: int64(q.Late),
		DemandedBytes: int64(q.Asked), FilledBytes: f.FilledBytes, Corrupt: f.Corrupt, CorruptIndexes: o.corruptIndexes(),
		FetchedBytes: map[string]int64{"fault": f.FetchedBytes, "prefetch": f.PrefetchedBytes, "background": f.BackgroundBytes},
		Fallbacks:    map[string]int64{}, KeeperConnected: k.Connected, KeeperHeld: int64(k.Held), KeeperDenied: k.Denied,
		Latency: telemetry.Histogram{Bounds: latencyBounds, Counts: q.Fills.Buckets(latencyBounds), Sum: q.Fills.Sum},
	}
	happened := o.lazyFallbacks()
	for _, reason := range lazy.Reasons() {
		m.Fallbacks[string(reason)] = happened[reason].Count
	}
	for _, l := range layers {
		if l.Lazy == nil {
			continue
		}
		m.Layers[l.State]++
		m.Bytes += l.Lazy.Bytes
		m.PresentBytes += l.Lazy.PresentBytes
		m.InFlight += int64(len(l.Lazy.InFlight))
		if l.Lazy.Orphan && !l.Lazy.Poisoned {
			m.Orphans++
		}
		if l.Lazy.Poisoned {
			m.Poisoned++
		}
		for _, in := range l.Lazy.InFlight {
			m.Oldest = max(m.Oldest, time.Since(in.Since))
		}
	}
	return m
}
