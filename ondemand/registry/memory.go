package registry

import (
	"context"
	"sync"
)

// rangeBytes is the length of the ranges of a blob that is read as a whole. 2 MiB are 80 ms at 200 Mbit/s, so that a round trip between
// two ranges on one connection is hidden by the others, and little is left to be converted when the last one has come.
const rangeBytes = 2 << 20

// memory shares the bytes of ranges that have not been read among the open blobs. A blob that holds nothing always gets what it asks for,
// as its reader waits for that very range: nothing here can deadlock. The others get it while the sum is below the limit and the
// blob's part below an equal share.
type memory struct {
	limit int64

	mu       sync.Mutex
	used     int64
	accounts int
	free     [][]byte      // buffers of rangeBytes for the next ranges; none without an open blob
	changed  chan struct{} // closed when something was released
}

// account is what one blob holds.
type account struct {
	memory *memory
	held   int64
}

func newMemory(limit int64) *memory {
	return &memory{limit: limit, changed: make(chan struct{})}
}

func (m *memory) open() *account {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.accounts++
	return &account{memory: m}
}

// close ends the account, which must hold nothing.
func (a *account) close() {
	m := a.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.accounts--; m.accounts == 0 {
		m.free = nil
	}
	m.wake() // the others' shares have grown
}

// get returns a buffer of n bytes, up to rangeBytes, as soon as the blob may have it.
func (a *account) get(ctx context.Context, n int64) ([]byte, error) {
	for {
		buf, changed := a.try(n)
		if buf != nil {
			return buf, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// try returns a buffer, or what to wait for.
func (a *account) try(n int64) ([]byte, <-chan struct{}) {
	m := a.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.held > 0 && (m.used+n > m.limit || a.held+n > m.limit/int64(m.accounts)) {
		return nil, m.changed
	}
	a.held += n
	m.used += n
	if n < rangeBytes {
		return make([]byte, n), nil
	}
	if last := len(m.free) - 1; last >= 0 {
		buf := m.free[last]
		m.free = m.free[:last]
		return buf, nil
	}
	return make([]byte, rangeBytes), nil
}

// put gives back a buffer that get returned, with the n that was asked for.
func (a *account) put(buf []byte, n int64) {
	m := a.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	a.held -= n
	m.used -= n
	if n == rangeBytes {
		m.free = append(m.free, buf[:rangeBytes])
	}
	m.wake()
}

// wake lets those who wait look again. The caller holds mu.
func (m *memory) wake() {
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *memory) stats() (accounts int, used int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.accounts, m.used
}
