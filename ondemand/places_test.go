package ondemand

import (
	"math/rand/v2"
	"testing"
)

// TestPlaces compares answers with those of the table: yes is never wrong, and no is corrected.
func TestPlaces(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	lengths := make([]int, 300)
	for i := range lengths {
		lengths[i] = 1 + r.IntN(20000)
	}
	m := add(t, run(t, Options{}), LayerOptions{}, 0, lengths...)
	for i := range m.extents {
		if i%3 > 0 {
			must(t, m.Put(i, m.content(i)))
		}
	}
	m.Ready(0, 1)
	eventually(t, "places are known", func() bool { return m.places.known.Load() != nil })
	for range 20000 {
		off, n := r.Int64N(m.blob.Size()+10000)-5000, r.Int64N(50000)
		if r.IntN(50) == 0 {
			n = 1<<63 - 1
		}
		first, end, err := m.blob.Covering(off, n)
		must(t, err)
		if got, want := m.Ready(off, n), m.blob.NextAbsent(first, end) == end; got != want {
			t.Fatalf("%d bytes at %d: ready %t, want %t", n, off, got, want)
		}
	}
}

// TestPlacesAreBounded: when there are too many, those of layers go that nobody reads from.
func TestPlacesAreBounded(t *testing.T) {
	e := run(t, Options{})
	read := func() made {
		m := add(t, e, LayerOptions{}, 0, 5000)
		m.Ready(0, 1)
		eventually(t, "places are known", func() bool { return m.places.known.Load() != nil })
		return m
	}
	a, b := read(), read()
	e.places.mu.Lock()
	e.places.extents += placesMost - 2
	e.places.mu.Unlock()
	a.places.recent.Store(false)
	c := read()
	if a.places.known.Load() != nil || b.places.known.Load() == nil || c.places.known.Load() == nil {
		t.Error("want the places of the layer dropped that nobody reads from")
	}
	if a.Ready(0, 1); !a.places.asked.Load() {
		t.Error("places that were dropped are not read again")
	}
	b.Close()
	if b.places.known.Load() != nil {
		t.Error("a layer that is closed has places")
	}
}

func TestEmptyLayer(t *testing.T) {
	completed := make(chan struct{})
	m := add(t, run(t, Options{}), LayerOptions{PrefetchUntil: 1 << 20, Completed: func() { close(completed) }}, 0)
	<-completed
	if !m.Ready(0, 4096) {
		t.Error("nothing is not ready")
	}
	must(t, m.Fill(t.Context(), 0, 4096))
	eventually(t, "places are known", func() bool { return m.places.known.Load() != nil })
	if !m.Ready(0, 4096) {
		t.Error("nothing is not ready")
	}
}
