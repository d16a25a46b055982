package ondemand

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
)

const (
	// placesMost bounds the extents whose places are in memory, over all layers: 16 MiB.
	placesMost = 2 << 20
	// placesPerLayer bounds those of one layer. A larger one looks them up in its table.
	placesPerLayer = placesMost / 2
	// placesStep is how many extents are read from a table at a time.
	placesStep = 1024
)

// places are the data offsets of all extents of a layer, in order. They answer Ready in a fraction of the time that the table of the
// blob takes, which is in a file.
type places []int64

// covering returns the extents that overlap n bytes at off, and perhaps one before them, for a place says only where an extent begins.
func (p places) covering(off, n int64) (first, end int) {
	first, found := slices.BinarySearch(p, off)
	if !found && first > 0 {
		first--
	}
	more, _ := slices.BinarySearch(p[first:], off+min(n, placesEnd-off))
	return first, first + more
}

// placesEnd is more than any offset in data.
const placesEnd = blob.MaxDataBytes + 1

// layerPlaces are the places of a layer, if they are in memory.
type layerPlaces struct {
	known  atomic.Pointer[places]
	asked  atomic.Bool // they are being read, or cannot be
	recent atomic.Bool // used since the cache looked last
}

// present says whether all of a range is present. The places may say no when the table says yes.
func (l *Layer) present(off, n int64) bool {
	if p := l.places.known.Load(); p != nil {
		if !l.places.recent.Load() {
			l.places.recent.Store(true)
		}
		if first, end := p.covering(off, n); l.blob.NextAbsent(first, end) == end {
			return true
		}
	} else {
		l.places.ask(l)
	}
	first, end, err := l.blob.Covering(off, n)
	return err == nil && l.blob.NextAbsent(first, end) == end
}

// ask has the places of a layer read into memory, which somebody reads from.
func (p *layerPlaces) ask(l *Layer) {
	if !p.asked.Load() && p.asked.CompareAndSwap(false, true) {
		l.start(func(context.Context) { l.engine.places.load(l) })
	}
}

// placesCache bounds the places of all layers. When there are too many, those of layers go that were not read from of late.
type placesCache struct {
	mu      sync.Mutex
	extents int
	layers  []*Layer // whose places are known, in the order in which the clock goes round
}

// load reads the places of a layer from its table. If that fails there are none, and whoever needs the table learns why.
func (c *placesCache) load(l *Layer) {
	count := l.blob.Count()
	if count > placesPerLayer {
		return
	}
	p := make(places, 0, count)
	for len(p) < count {
		list, err := l.blob.Extents(len(p), min(len(p)+placesStep, count))
		if err != nil {
			return
		}
		for _, x := range list {
			p = append(p, x.Offset)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.extents+count > placesMost {
		c.dropOldest()
	}
	c.extents += count
	c.layers = append(c.layers, l)
	l.places.recent.Store(true)
	l.places.known.Store(&p)
}

// dropOldest drops the places of the next layer that was not read from since it was its turn last. The caller holds mu.
func (c *placesCache) dropOldest() {
	for {
		l := c.layers[0]
		if !l.places.recent.Swap(false) {
			c.remove(0)
			return
		}
		c.layers = append(c.layers[1:], l)
	}
}

func (c *placesCache) remove(i int) {
	l := c.layers[i]
	c.layers = slices.Delete(c.layers, i, i+1)
	c.extents -= len(*l.places.known.Swap(nil))
	l.places.asked.Store(false)
}

// drop drops the places of a layer that was closed.
func (c *placesCache) drop(l *Layer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.layers, l); i >= 0 {
		c.remove(i)
	}
}
