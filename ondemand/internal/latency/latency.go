// Package latency counts how long things take, cheaply enough for every answer that a transport gives.
package latency

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	// steps divides each doubling of the time, so a quantile is at most a quarter too large.
	steps = 4
	// doublings begin at a microsecond and end at 2^27 of them, two minutes, which is longer than a fill may take.
	doublings   = 27
	bucketCount = steps * doublings
)

// Histogram is a histogram of times. The zero value is empty.
type Histogram struct {
	Count   uint64
	Sum     time.Duration
	buckets [bucketCount]uint64
}

// Quantile returns a time that the share q (0 to 1) of all times did not exceed, or 0 if there are none.
func (l *Histogram) Quantile(q float64) time.Duration {
	rank := uint64(math.Ceil(q * float64(l.Count)))
	var seen uint64
	for i, n := range l.buckets {
		if seen += n; n > 0 && seen >= rank {
			return bucketEnd(i)
		}
	}
	return 0
}

// Add adds the times of another histogram.
func (l *Histogram) Add(o *Histogram) {
	l.Count += o.Count
	l.Sum += o.Sum
	for i, n := range o.buckets {
		l.buckets[i] += n
	}
}

// Buckets counts the times up to each of the bounds, which grow, and beyond the last of them, as exactly as the histogram knows.
func (l *Histogram) Buckets(bounds []time.Duration) []int64 {
	counts := make([]int64, len(bounds)+1)
	at := 0
	for i, n := range l.buckets {
		for at < len(bounds) && bucketEnd(i) > bounds[at] {
			at++
		}
		counts[at] += int64(n)
	}
	return counts
}

// Recorder is a Histogram that is added to without a lock. The zero value is empty.
type Recorder struct {
	sum     atomic.Int64
	buckets [bucketCount]atomic.Uint64
}

// Add counts one time.
func (l *Recorder) Add(d time.Duration) {
	l.sum.Add(int64(d))
	l.buckets[bucketOf(d)].Add(1)
}

// Load returns what was added so far.
func (l *Recorder) Load() Histogram {
	r := Histogram{Sum: time.Duration(l.sum.Load())}
	for i := range l.buckets {
		r.buckets[i] = l.buckets[i].Load()
		r.Count += r.buckets[i]
	}
	return r
}

// bucketOf returns the bucket of a time: the first that ends after it, or the last. The first bucket begins at 0.
func bucketOf(d time.Duration) int {
	parts := uint64(max(d, 0) / (time.Microsecond / steps))
	if parts < steps {
		return 0
	}
	doubling := bits.Len64(parts/steps) - 1
	part := int(parts>>doubling) % steps
	return min(doubling*steps+part, bucketCount-1)
}

func bucketEnd(i int) time.Duration {
	doubling, part := i/steps, i%steps
	return time.Microsecond << doubling * time.Duration(steps+part+1) / steps
}
