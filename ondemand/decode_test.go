package ondemand

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/ondemand/blob"
)

// trickle is a Source whose bytes come a tenth at a time, one each second, up to a place.
type trickle struct {
	bytes []byte
	until int // of what is read; 0: all
}

var errTrickle = errors.New("reset by peer")

func (s trickle) ReadAt(ctx context.Context, p []byte, off int64, _ int, came func(int)) error {
	step := (len(p) + 9) / 10
	for n := 0; n < len(p); n += step {
		if s.until > 0 && n >= s.until {
			return errTrickle
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		copy(p[n:], s.bytes[off+int64(n):][:min(step, len(p)-n)])
		came(min(n+step, len(p)))
	}
	return nil
}

// slowly adds a layer whose source is a trickle.
func slowly(t *testing.T, e *Engine, until int, lengths ...int) made {
	list, bytes, dataBytes := layout(0, lengths...)
	m := made{source: &source{bytes: bytes}, extents: list, blob: newBlob(t, list, dataBytes)}
	m.Layer = e.Add(m.blob, LayerOptions{Name: "sha256:slow", Source: trickle{bytes, until}})
	t.Cleanup(m.Layer.Close)
	return m
}

// TestDecodedAsItComes: the decoder has a large extent from its first bytes on.
func TestDecodedAsItComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var opened time.Duration
		e := run(t, Options{NewDecoder: func() Decoder { return &hooked{open: func() { opened = time.Since(began) }} }})
		m := slowly(t, e, 0, 10*streamedBytes)
		must(t, m.fillExtent(t, 0))
		if took := time.Since(began); opened > time.Second || took != 10*time.Second {
			t.Errorf("the decoder had it after %v, all was there after %v", opened, took)
		}
		m.check(t)
	})
}

// TestProcessorsAreFree while decoders wait for bytes.
func TestProcessorsAreFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := run(t, Options{})
		for range 2 * e.processors.size {
			m := slowly(t, e, 0, 10*streamedBytes)
			go func() { _ = m.Fill(t.Context(), 0, 1) }()
		}
		time.Sleep(1500 * time.Millisecond)
		fast := add(t, e, LayerOptions{}, 0, 10*streamedBytes)
		began := time.Now()
		must(t, fast.fillExtent(t, 0))
		if took := time.Since(began); took > 0 {
			t.Errorf("waited %v for others", took)
		}
		time.Sleep(time.Minute)
	})
}

// TestPartOfRequest: what has come before a request fails is used, and only the rest is missed.
func TestPartOfRequest(t *testing.T) {
	for name, lengths := range map[string][]int{"small ones": repeat(8000, 12), "large ones": repeat(2*streamedBytes, 3)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				total := len(lengths) * lengths[0]
				m := slowly(t, run(t, Options{}), total/2, lengths...)
				last := m.extents[len(lengths)-1]
				if err := m.Fill(t.Context(), 0, last.End()); !errors.Is(err, errTrickle) {
					t.Errorf("got %v", err)
				}
				if n := m.check(t); n < len(lengths)/2-1 || n > len(lengths)*2/3 {
					t.Errorf("%d of %d extents are present", n, len(lengths))
				}
				if s := m.Stats(); s.Corrupt != 0 || s.Pending != 0 {
					t.Errorf("counted %+v", s)
				}
			})
		})
	}
}

// TestOpenedOnce: a decoder gets a range that is corrupt, or does not come, once for all of its extents.
func TestOpenedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opened := 0
		e := run(t, Options{NewDecoder: func() Decoder { return &hooked{open: func() { opened++ }} }})
		m := togetherBy(t, e, 20, 4000, 20)
		m.source.set(func(_ context.Context, a asked, p []byte) error {
			if a.attempt > 0 {
				return nil
			}
			clear(p)
			return errDone
		})
		must(t, m.fillExtent(t, 3))
		if opened != 2 {
			t.Errorf("opened %d times, want 2", opened)
		}
		if s := m.Stats(); s.Corrupt != 20 || s.Fetches != 2 {
			t.Errorf("counted %+v", s)
		}
	})
}

// TestMemoryOfDecoder: what a decoder has made when it waits is counted, of whatever extent.
func TestMemoryOfDecoder(t *testing.T) {
	r := newRequest(fault)
	for _, x := range []blob.Extent{{Length: 8 << 20, BlobLength: 20_000}, {Length: 1 << 20, BlobOffset: 20_000, BlobLength: 20_000}} {
		r.add(numbered{Extent: x})
	}
	if got := r.memory(); got != 8<<20+40_000 {
		t.Errorf("%d bytes", got)
	}
}

// TestCorruptBeforeTheEnd: bytes that are found to be wrong before all have come are fetched again, and nobody is told that they are there.
func TestCorruptBeforeTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failures := 2
		e := run(t, Options{NewDecoder: func() Decoder {
			return &hooked{early: func() error {
				if failures--; failures >= 0 {
					return errDigest
				}
				return nil
			}}
		}})
		m := slowly(t, e, 0, 10*streamedBytes)
		must(t, m.fillExtent(t, 0))
		if s := m.Stats(); s.Corrupt != 2 || s.Fetches != 3 || s.Failed != 0 {
			t.Errorf("counted %+v", s)
		}
		m.check(t)
	})
}
