package ondemand

import (
	"sync/atomic"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
)

const (
	// leastBytes is what a fault brings from where it begins on, and beforeBytes what it brings from before that, if so much is absent and
	// near: a program that starts reads files of one directory in any order, and what it reads next is often there. Of the starts that were
	// recorded (docs/benchmarks.md) twice as much saves 2 to 10 % of the time and costs 4 to 10 % more bytes.
	leastBytes  = 128 << 10
	beforeBytes = 32 << 10
	// mostBytes is the longest request for several extents. It bounds how long a reader waits for what he has not asked for, and what is
	// in memory before anything can be decoded.
	mostBytes = 1 << 20
	// prefetchBytes is less, for requests that are on their way cannot be overtaken.
	prefetchBytes = 512 << 10
	// gapBytes is what is read over between two extents: about what another request would cost.
	gapBytes = 32 << 10
	// mostExtents bounds what a request has to remember, should a layer consist of tiny extents.
	mostExtents = 4096
	// planStep is how many extents are read from the table at a time: a page of it, so that one that is damaged harms no other.
	planStep = 63
)

// numbered is an extent with its place in the table.
type numbered struct {
	blob.Extent
	i int
}

func (x numbered) blobEnd() int64 { return x.BlobOffset + int64(x.BlobLength) }

// sameRange tells whether two extents are decoded together.
func (x numbered) sameRange(o numbered) bool {
	return x.BlobOffset == o.BlobOffset && x.BlobLength == o.BlobLength && x.Kind == o.Kind
}

// request is a range of the layer's blob that is fetched, and the extents in it that are absent, in their order.
type request struct {
	class    atomic.Int32
	from, to int64
	extents  []numbered
	first    int // of extents: decoded first, then the others behind it, then those before it
	attempt  int
}

func newRequest(c class) *request {
	r := &request{}
	r.class.Store(int32(c))
	return r
}

func (r *request) bytes() int64 { return r.to - r.from }

// fits tells whether x, which comes after all extents of r, can be fetched with it without more than gapBytes for nothing.
func (r *request) fits(x numbered) bool {
	return len(r.extents) == 0 || x.BlobOffset >= r.from && x.BlobOffset-r.to <= gapBytes && len(r.extents) < mostExtents
}

// exceeds tells whether x would make r fetch more, and more than limit. The first extent of a request may have any length.
func (r *request) exceeds(x numbered, limit int64) bool {
	return len(r.extents) > 0 && x.blobEnd() > r.to && x.blobEnd()-r.from > limit
}

func (r *request) add(x numbered) {
	if len(r.extents) == 0 {
		r.from, r.to = x.BlobOffset, x.blobEnd()
	}
	r.to = max(r.to, x.blobEnd())
	r.extents = append(r.extents, x)
}

// planner looks at the extents of a layer. The mu of the layer is held while it is used.
type planner struct {
	layer *Layer
	list  []blob.Extent // those that were read from the table
	first int           // the number of list[0]
}

func (p *planner) extent(i int) (numbered, error) {
	if i < p.first || i >= p.first+len(p.list) {
		first := i / planStep * planStep
		list, err := p.layer.blob.Extents(first, min(first+planStep, p.layer.blob.Count()))
		if err != nil {
			return numbered{}, err
		}
		p.list, p.first = list, first
	}
	return numbered{p.list[i-p.first], i}, nil
}

// open tells whether extent i has to be fetched and is not on its way.
func (p *planner) open(i int) bool { return !p.layer.blob.Present(i) && p.layer.flying[i] == nil }

// nextOpen returns the first extent from i up to, and without, end that is open, or end.
func (p *planner) nextOpen(i, end int) int {
	for i = p.layer.blob.NextAbsent(i, end); i < end && !p.open(i); {
		i = p.layer.blob.NextAbsent(i+1, end)
	}
	return i
}

// begin returns the first extent of a request that is to fetch x, which is open: with the open ones before it that are decoded with it, as
// far as the table can be read.
func (p *planner) begin(x numbered) numbered {
	for n := 0; x.i > 0 && n < mostExtents/2 && p.open(x.i-1); n++ {
		o, err := p.extent(x.i - 1)
		if err != nil || !o.sameRange(x) {
			break
		}
		x = o
	}
	return x
}

// before returns the first extent of a request that is to fetch x, with what is near before it, as far as the table can be read. There is
// room for x in that request.
func (p *planner) before(x numbered) numbered {
	from := x
	if int64(x.BlobLength) > mostBytes {
		return from
	}
	for n := 0; from.i > 0 && n < mostExtents/4 && p.open(from.i-1); n++ {
		o, err := p.extent(from.i - 1)
		if err != nil || o.BlobOffset > from.BlobOffset || from.BlobOffset-o.blobEnd() > gapBytes || x.BlobOffset-o.BlobOffset > beforeBytes {
			break
		}
		from = o
	}
	return from
}

// collect adds open extents from i on to a request: those before needed while it has at most most bytes, more while it has at most least.
// The first is added in any case. It returns the number after the last that was looked at and need not be again.
func (p *planner) collect(r *request, i, needed int, least, most int64) (next int, err error) {
	for count := p.layer.blob.Count(); i < count; i++ {
		if i < needed {
			i = p.nextOpen(i, needed)
		}
		if i >= needed {
			near := min(i+planStep, count)
			if i = p.nextOpen(i, near); i == near {
				break
			}
		}
		x, err := p.extent(i)
		if err != nil {
			return i, err
		}
		limit := least
		if i < needed {
			limit = most
		}
		if !r.fits(x) || r.exceeds(x, limit) {
			break
		}
		r.add(x)
	}
	return i, nil
}

// plan makes the next request of a class, whose extents are on their way from now on; nil if there is none. The caller holds mu.
func (l *Layer) plan(c class) *request {
	p := planner{layer: l}
	r := newRequest(c)
	switch c {
	case fault:
		l.planFault(&p, r)
	case ahead:
		l.planAhead(&p, r)
	case prefetch:
		l.planPrefetch(&p, r)
	}
	if len(r.extents) == 0 {
		return nil
	}
	for _, x := range r.extents {
		l.flying[x.i] = r
	}
	return r
}

// planFault serves who has waited longest. If the table cannot be read, those who need it learn it.
func (l *Layer) planFault(p *planner, r *request) {
	for _, d := range l.demands {
		if d.finished {
			continue
		}
		if d.planned = p.nextOpen(d.planned, d.end); d.planned == d.end {
			continue
		}
		i, err := p.fault(r, d)
		if err != nil && len(r.extents) == 0 {
			d.finish(err)
			continue
		}
		// If the request ended before the fault does, the next one goes on.
		d.planned = min(i, d.end)
		return
	}
}

// fault collects what a fault needs next, and what is near, and returns how far that goes.
func (p *planner) fault(r *request, d *demand) (next int, err error) {
	x, err := p.extent(d.planned)
	if err != nil {
		return 0, err
	}
	first := p.begin(x)
	from := p.before(first)
	before := first.BlobOffset - from.BlobOffset
	next, err = p.collect(r, from.i, d.end, before+leastBytes, before+mostBytes)
	r.first = min(first.i-from.i, len(r.extents)-1)
	return next, err
}

// planAhead goes on with a stream that has credit.
func (l *Layer) planAhead(p *planner, r *request) {
	for n := range l.streams {
		s := &l.streams[n]
		for s.credit > 0 && len(r.extents) == 0 {
			if err := p.advance(s, r); err != nil {
				s.stop() // whoever comes there will learn it
			}
		}
	}
}

// advance goes one extent, or one request, further with a stream.
func (p *planner) advance(s *stream, r *request) error {
	if s.next >= p.layer.blob.Count() {
		s.stop()
		return nil
	}
	x, err := p.extent(s.next)
	if err != nil {
		return err
	}
	if !p.open(s.next) {
		cost := int64(x.BlobLength)
		if s.passed.sameRange(x) {
			cost = 0
		}
		s.passed = x
		s.pass(s.next+1, x.Extent.End(), cost)
		return nil
	}
	// A quarter of a window, so that its first part can be decoded while the next ones come.
	most := min(s.credit, max(s.window/4, leastBytes), mostBytes)
	next, err := p.collect(r, s.next, s.next+1, most, most)
	if n := len(r.extents); n > 0 {
		s.pass(next, r.extents[n-1].Extent.End(), r.bytes())
	}
	return err
}

// cursor is how far the table was looked at for extents in the first until bytes of the layer's blob.
type cursor struct {
	next  int
	until int64
}

// prefetchStep is how many extents are looked at before others may have the lock.
const prefetchStep = 4096

// planPrefetch looks at some extents of the table, and leaves the rest for the next time.
func (l *Layer) planPrefetch(p *planner, r *request) {
	c, count := &l.prefetch, l.blob.Count()
	for n := 0; n < prefetchStep && c.next < count; n++ {
		if c.next = p.nextOpen(c.next, count); c.next == count {
			return
		}
		x, err := p.extent(c.next)
		if err != nil {
			c.next = count
			return
		}
		if x.blobEnd() <= c.until {
			if !r.fits(x) || r.exceeds(x, prefetchBytes) {
				return
			}
			r.add(x)
		}
		c.next++
	}
}
