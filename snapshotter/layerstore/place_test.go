package layerstore

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
)

// fromNetwork is opener for a blob that comes from the network.
func fromNetwork(b []byte) Opener {
	return func(ctx context.Context) (io.ReadCloser, error) {
		if err := FromNetwork(ctx); err != nil {
			return nil, err
		}
		return opener(b)(ctx)
	}
}

// TestPlaces: as many layers from the network are converted at a time as may be, and what lies here does not wait for them.
func TestPlaces(t *testing.T) {
	const parallel = 2
	s, started, release := slowStoreFor(t, parallel)
	blobs, digests := someLayers(t, 5)
	var busy sync.WaitGroup
	begin := func(layer digest.Digest, open Opener) {
		busy.Go(func() {
			_, pin, err := s.Import(t.Context(), layer, open)
			pin.Release()
			if err != nil {
				t.Error(err)
			}
		})
	}
	for i := range parallel + 1 {
		begin(digests[i], fromNetwork(blobs[i]))
	}
	for range parallel {
		<-started
	}
	begin(digests[3], opener(blobs[3]))
	<-started
	if (&place{places: s.places}).tryEnter() || len(started) > 0 {
		t.Error("there is room for a second layer that lies here, or for a third from the network")
	}
	close(release)
	busy.Wait()
	s.running.Wait()
	wantFreePlaces(t, s)
}

// TestNetworkPlaceIsCancelled: who gives up waiting for the network takes no place.
func TestNetworkPlaceIsCancelled(t *testing.T) {
	s, started, release := slowStoreFor(t, 1)
	blobs, digests := someLayers(t, 2)
	var busy sync.WaitGroup
	busy.Go(func() {
		_, pin, err := s.Import(t.Context(), digests[0], fromNetwork(blobs[0]))
		pin.Release()
		if err != nil {
			t.Error(err)
		}
	})
	<-started
	ctx, cancel := context.WithCancel(t.Context())
	opening := make(chan struct{})
	busy.Go(func() {
		_, _, err := s.Import(ctx, digests[1], func(ctx context.Context) (io.ReadCloser, error) {
			close(opening)
			return fromNetwork(blobs[1])(ctx)
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the import that was cancelled: %v", err)
		}
	})
	<-opening
	cancel()
	close(release)
	busy.Wait()
	s.running.Wait()
	wantFreePlaces(t, s)
}

// TestNetworkTwice: a blob that is opened again, because the disk was full, has its place already. Outside of an Opener there is none to have.
func TestNetworkTwice(t *testing.T) {
	p := &place{places: newPlaces(1)}
	must(t, p.enter(t.Context(), p.local))
	ctx := context.WithValue(t.Context(), placeKey{}, p)
	for range 2 {
		must(t, FromNetwork(ctx))
	}
	p.leave()
	p.leave()
	must(t, FromNetwork(t.Context()))
	wantFreePlaces(t, &Store{places: p.places, parallel: 1})
}

func wantFreePlaces(t *testing.T, s *Store) {
	t.Helper()
	n := int64(s.parallel)
	if !s.places.local.TryAcquire(n) || !s.places.network.TryAcquire(n) || !s.places.all.TryAcquire(n+1) {
		t.Error("a place was not given back")
	}
}
