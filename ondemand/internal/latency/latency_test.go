package latency

import (
	"math"
	"testing"
	"time"
)

func TestBuckets(t *testing.T) {
	for i := range bucketCount {
		end := bucketEnd(i)
		if b := bucketOf(end); b != min(i+1, bucketCount-1) {
			t.Errorf("bucket %d ends at %v, which is in bucket %d", i, end, b)
		}
		if b := bucketOf(end - 1); b != i {
			t.Errorf("bucket %d ends at %v; shortly before is in %d", i, end, b)
		}
	}
	for _, d := range []time.Duration{math.MinInt64, 0, time.Nanosecond} {
		if b := bucketOf(d); b != 0 {
			t.Errorf("%v is in bucket %d", d, b)
		}
	}
	if b := bucketOf(math.MaxInt64); b != bucketCount-1 {
		t.Errorf("the longest time is in bucket %d", b)
	}
}

func TestQuantile(t *testing.T) {
	var l Recorder
	empty := l.Load()
	if q := empty.Quantile(0.5); q != 0 {
		t.Errorf("median of nothing: %v", q)
	}
	const ms = time.Millisecond
	for i := range 1000 {
		l.Add(time.Duration(i+1) * ms)
	}
	a := l.Load()
	sum := a
	sum.Add(&a)
	for _, h := range []Histogram{a, sum} {
		for q, exact := range map[float64]time.Duration{0: ms, 0.5: 500 * ms, 0.99: 990 * ms, 1: 1000 * ms} {
			if got := h.Quantile(q); got < exact || got > exact*5/4+ms {
				t.Errorf("quantile %v: %v, exact %v", q, got, exact)
			}
		}
	}
	if a.Count != 1000 || a.Sum != 500500*ms || sum.Count != 2000 || sum.Sum != 2*a.Sum {
		t.Errorf("count %d, sum %v; twice %d, %v", a.Count, a.Sum, sum.Count, sum.Sum)
	}
}
