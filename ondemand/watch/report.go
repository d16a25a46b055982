package watch

import (
	"fmt"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/cachefiles"
	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/fanotify"
)

// Report is how one instance is doing.
type Report struct {
	Name string
	// Orphan is its directory if it has left the store.
	Orphan   string
	Progress blob.Progress
	Fill     ondemand.LayerStats
	// Requests is what the kernel asked for, by events or over its cache; zero if the instance was never mounted.
	Requests fanotify.Stats
}

// Totals add up what happened to all instances, also those that are closed.
type Totals struct {
	Fill     ondemand.LayerStats // counts only
	Requests fanotify.Stats      // counts only
}

func (t *Totals) add(r Report) {
	f := &t.Fill
	f.Faults += r.Fill.Faults
	f.Failed += r.Fill.Failed
	f.Fetches += r.Fill.Fetches
	f.FetchedBytes += r.Fill.FetchedBytes
	f.PrefetchedBytes += r.Fill.PrefetchedBytes
	f.FilledBytes += r.Fill.FilledBytes
	f.BackgroundBytes += r.Fill.BackgroundBytes
	f.Corrupt += r.Fill.Corrupt
	q := &t.Requests
	q.Events += r.Requests.Events
	q.Asked += r.Requests.Asked
	q.Failed += r.Requests.Failed
	q.Refused += r.Requests.Refused
	q.Inherited += r.Requests.Inherited
	q.Late += r.Requests.Late
	q.Notices += r.Requests.Notices
	q.Hits.Add(&r.Requests.Hits)
	q.Fills.Add(&r.Requests.Fills)
}

// Reports are those of all instances that are open.
func (w *Watcher) Reports() []Report {
	all := w.all()
	reports := make([]Report, len(all))
	for i, e := range all {
		reports[i] = e.report()
	}
	return reports
}

// Totals returns the sums since the start.
func (w *Watcher) Totals() Totals {
	w.mu.Lock()
	t := w.past
	w.mu.Unlock()
	for _, r := range w.Reports() {
		t.add(r)
	}
	return t
}

func (e *watched) report() Report {
	r := Report{Name: e.layer.Name, Progress: e.blob.Progress(), Fill: e.fill.Stats()}
	if dir := e.orphan.Load(); dir != nil {
		r.Orphan = *dir
	}
	e.mu.Lock()
	asked := e.asked
	e.mu.Unlock()
	if asked != nil {
		r.Requests = asked.Stats()
	}
	e.asks.addTo(&r.Requests)
	return r
}

// Map says how much of each of so many equal parts of an instance's data blob is present, from 0 to 1.
func (w *Watcher) Map(name string, cells int) ([]float64, error) {
	w.mu.Lock()
	e := w.current[name]
	w.mu.Unlock()
	if e == nil {
		return nil, fmt.Errorf("layer instance %s is not open", name)
	}
	return e.blob.Map(cells)
}

// Keeper says whether a keeper is connected, and since when.
func (w *Watcher) Keeper() (connected bool, since time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.keeper != nil, w.since
}

// CacheReport is how the kernel's cache of files is doing.
type CacheReport struct {
	Domain, Dir string
	Mounted     int // instances
	Stats       cachefiles.Stats
	CulledBytes int64
	WantsSpace  bool
}

// CacheReport returns nil without a cache.
func (w *Watcher) CacheReport() *CacheReport {
	c := w.theCache()
	if c == nil {
		return nil
	}
	mounted, _ := c.mounted() // Run says what is wrong
	c.mu.Lock()
	defer c.mu.Unlock()
	return &CacheReport{
		Domain: c.note.Domain, Dir: c.note.Dir, Mounted: len(mounted), Stats: c.device.Stats(), CulledBytes: c.culled, WantsSpace: c.full,
	}
}
