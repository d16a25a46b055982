package login

import (
	"crypto/sha256"
	"sync"
)

// maxTargets bounds a Memory. Forgetting one costs its next caller an attempt with a credential that was refused before.
const maxTargets = 1024

// Memory remembers, for each target, which credential was given last and which were refused, as hashes. The zero Memory is ready.
// Safe for concurrent use.
type Memory struct {
	mu    sync.Mutex
	given map[Target]*history
}

type history struct {
	last     int // which candidate the last answer came from
	sum      [sha256.Size]byte
	answered bool
	refused  map[[sha256.Size]byte]bool
}

// Choose returns the first of n candidates for t that was not refused, or no Login at all. refused tells that the last one chosen for
// t was; candidate is told the same when it is asked for the one that the last choice came from.
//
// A refused credential is passed over until every candidate was refused. Then the refusals are forgotten: a registry that refused
// good credentials for a while must not lock them out.
func (m *Memory) Choose(t Target, refused bool, n int, candidate func(i int, refused bool) Login) Login {
	h := m.recall(t, refused)
	first := Login{}
	firstFrom := 0
	for i := range n {
		l := candidate(i, refused && h.answered && i == h.last)
		if !l.Known() {
			continue
		}
		if sum := l.sum(); !h.refused[sum] {
			m.remember(t, i, l)
			return l
		}
		if !first.Known() {
			first, firstFrom = l, i
		}
	}
	m.forget(t)
	if refused || !first.Known() {
		return Login{}
	}
	m.remember(t, firstFrom, first)
	return first
}

// recall returns a copy of the history of t, after the last answer was added to the refused ones if it was refused.
func (m *Memory) recall(t Target, refused bool) history {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.given[t]
	if h == nil {
		return history{}
	}
	if refused && h.answered {
		// A new map, because callers read the old one without the lock.
		sums := make(map[[sha256.Size]byte]bool, len(h.refused)+1)
		for sum := range h.refused {
			sums[sum] = true
		}
		sums[h.sum] = true
		h.refused = sums
	}
	return *h
}

func (m *Memory) remember(t Target, from int, l Login) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.given[t]
	if h == nil {
		if m.given == nil {
			m.given = make(map[Target]*history)
		}
		for other := range m.given {
			if len(m.given) < maxTargets {
				break
			}
			delete(m.given, other)
		}
		h = &history{}
		m.given[t] = h
	}
	h.last, h.sum, h.answered = from, l.sum(), true
}

func (m *Memory) forget(t Target) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.given, t)
}
