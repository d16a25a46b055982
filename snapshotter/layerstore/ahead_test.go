package layerstore

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
)

// slowStoreFor is slowStore with room for some conversions at a time.
func slowStoreFor(t *testing.T, parallel int) (s *Store, started, release chan struct{}) {
	s, started, release = slowStore(t)
	s.places, s.parallel = newPlaces(parallel), parallel
	return s, started, release
}

func someLayers(t *testing.T, n int) (blobs [][]byte, digests []digest.Digest) {
	for i := range n {
		b, d := layer(t, fmt.Sprint("content ", i))
		blobs, digests = append(blobs, b), append(digests, d)
	}
	return blobs, digests
}

// TestParallel: no more conversions than allowed at a time, and all of them in the end.
func TestParallel(t *testing.T) {
	s, started, release := slowStoreFor(t, 2)
	blobs, digests := someLayers(t, 5)
	var busy sync.WaitGroup
	for i := range blobs {
		busy.Go(func() {
			_, pin, err := s.Import(t.Context(), digests[i], opener(blobs[i]))
			pin.Release()
			if err != nil {
				t.Error(err)
			}
		})
	}
	for i := range blobs {
		for waiters(s, EagerID(digests[i])) == 0 {
			runtime.Gosched()
		}
	}
	<-started
	<-started
	if (&place{places: s.places}).tryEnter() {
		t.Error("there is a place for a third conversion")
	}
	if len(started) > 0 {
		t.Error("a third conversion began")
	}
	close(release)
	busy.Wait()
}

// TestWaitingImportIsCancelled: who gives up waiting for a place takes none.
func TestWaitingImportIsCancelled(t *testing.T) {
	s, started, release := slowStoreFor(t, 1)
	blobs, digests := someLayers(t, 2)
	var busy sync.WaitGroup
	busy.Go(func() {
		_, pin, err := s.Import(t.Context(), digests[0], opener(blobs[0]))
		pin.Release()
		if err != nil {
			t.Error(err)
		}
	})
	<-started
	ctx, cancel := context.WithCancel(t.Context())
	busy.Go(func() {
		if _, _, err := s.Import(ctx, digests[1], never); !errors.Is(err, context.Canceled) {
			t.Errorf("the import that was cancelled: %v", err)
		}
	})
	for waiters(s, EagerID(digests[1])) == 0 {
		runtime.Gosched()
	}
	cancel()
	close(release)
	busy.Wait()
	s.running.Wait()
	if !(&place{places: s.places}).tryEnter() {
		t.Error("a place was not given back")
	}
}

func TestImportAhead(t *testing.T) {
	s, started, release := slowStoreFor(t, 2)
	blobs, digests := someLayers(t, 3)
	if !s.ImportAhead(t.Context(), digests[0], opener(blobs[0])) {
		t.Fatal("there is no place for the first")
	}
	<-started
	if !s.ImportAhead(t.Context(), digests[0], never) {
		t.Error("what is on its way is asked for again")
	}
	if s.ImportAhead(t.Context(), digests[1], never) {
		t.Error("the place that is kept for an Import was taken")
	}
	var busy sync.WaitGroup
	importLayer := func(i int, open Opener) {
		busy.Go(func() {
			_, pin, err := s.Import(t.Context(), digests[i], open)
			pin.Release()
			if err != nil {
				t.Error(err)
			}
		})
	}
	importLayer(1, opener(blobs[1]))
	<-started
	importLayer(0, never) // joins
	for waiters(s, EagerID(digests[0])) == 0 {
		runtime.Gosched()
	}
	if s.ImportAhead(t.Context(), digests[2], never) {
		t.Error("there is a third place")
	}
	close(release)
	busy.Wait()
	if s.Pinned(EagerID(digests[0])) {
		t.Error("pinned although its import has come")
	}
	if !s.ImportAhead(t.Context(), digests[2], opener(blobs[2])) {
		t.Error("no place for another one")
	}
	s.running.Wait()
	if !s.Pinned(EagerID(digests[2])) {
		t.Error("not pinned while its import is yet to come")
	}
	_, pin, err := s.Import(t.Context(), digests[2], never)
	must(t, err)
	pin.Release()
	if s.Pinned(EagerID(digests[2])) {
		t.Error("pinned although its import has come")
	}
}

// TestAbandonAhead: a conversion that was begun ahead ends when it is taken back, and not when somebody has asked for it since.
func TestAbandonAhead(t *testing.T) {
	s, started, release := slowStoreFor(t, 2)
	b, dgst := layer(t, "content")
	s.ImportAhead(t.Context(), dgst, opener(b))
	<-started
	s.AbandonAhead(dgst)
	s.running.Wait()
	if list := s.List(); len(list) > 0 {
		t.Errorf("imported %v", list)
	}
	s.ImportAhead(t.Context(), dgst, opener(b))
	<-started
	var busy sync.WaitGroup
	busy.Go(func() {
		_, pin, err := s.Import(t.Context(), dgst, never)
		pin.Release()
		if err != nil {
			t.Error(err)
		}
	})
	for waiters(s, EagerID(dgst)) == 0 {
		runtime.Gosched()
	}
	s.AbandonAhead(dgst)
	close(release)
	busy.Wait()
}

// TestImportAheadKeepsAPlace: with one conversion at a time nothing is done ahead.
func TestImportAheadKeepsAPlace(t *testing.T) {
	s, _, _ := slowStoreFor(t, 1)
	_, dgst := layer(t, "content")
	if s.ImportAhead(t.Context(), dgst, never) {
		t.Error("the only place was taken")
	}
}

// TestAheadEndsWithTheStore: Close does not wait for a conversion that nobody waits for.
func TestAheadEndsWithTheStore(t *testing.T) {
	s, started, _ := slowStoreFor(t, 2)
	b, dgst := layer(t, "content")
	s.ImportAhead(t.Context(), dgst, opener(b))
	<-started
	must(t, s.Close())
	if list := s.List(); len(list) > 0 {
		t.Errorf("imported %v", list)
	}
}

func TestParallelOptions(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want int
	}{
		{Options{}, runtime.GOMAXPROCS(0)},
		{Options{Parallel: 7}, 7},
		{Options{Parallel: 7, Memory: 3 * ConversionBytes}, 3},
		{Options{Parallel: 7, Memory: 1}, 1},
	} {
		if got := c.o.parallel(); got != c.want {
			t.Errorf("%+v: %d, want %d", c.o, got, c.want)
		}
	}
}
