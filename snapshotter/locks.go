package snapshotter

import "sync"

// numberLocks is a mutex for every number. The zero value is ready.
type numberLocks struct {
	mu    sync.Mutex
	locks map[uint64]*numberLock
}

type numberLock struct {
	sync.Mutex
	users int // guarded by numberLocks.mu
}

// lock waits for the mutex of n, and returns the function that releases it.
func (l *numberLocks) lock(n uint64) (unlock func()) {
	l.mu.Lock()
	if l.locks == nil {
		l.locks = map[uint64]*numberLock{}
	}
	one := l.locks[n]
	if one == nil {
		one = &numberLock{}
		l.locks[n] = one
	}
	one.users++
	l.mu.Unlock()
	one.Lock()
	return func() {
		one.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(l.locks, n)
		}
	}
}
