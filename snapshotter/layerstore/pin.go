package layerstore

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// Pin protects an instance from Discard. Release it when the instance is referenced elsewhere, or not needed. The zero Pin
// protects nothing, and may be released.
type Pin struct{ held *heldPin }

type heldPin struct {
	store    *Store
	id       ID
	released bool // guarded by store.mu
}

// Release ends the protection. It may be called more than once.
func (p Pin) Release() {
	if p.held == nil {
		return
	}
	s := p.held.store
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unpin(p.held)
}

// unpin is called with mu held.
func (s *Store) unpin(h *heldPin) {
	if h.released {
		return
	}
	h.released = true
	if s.pins[h.id]--; s.pins[h.id] == 0 {
		delete(s.pins, h.id)
	}
}

// Pin protects an instance from Discard until the Pin is released.
func (s *Store) Pin(id ID) (Pin, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.instances[id]; !ok {
		return Pin{}, fmt.Errorf("layer instance %s: %w", id, errdefs.ErrNotFound)
	}
	return s.pin(id), nil
}

// Pinned reports whether an instance is protected by a Pin.
func (s *Store) Pinned(id ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pins[id] > 0
}

// pin is called with mu held, for an instance that exists or is about to.
func (s *Store) pin(id ID) Pin {
	s.pins[id]++
	return Pin{&heldPin{store: s, id: id}}
}
