package ondemand

import "sync"

// arrival is the bytes of a request, which come into a buffer from its beginning on.
type arrival struct {
	buf []byte

	mu      sync.Mutex
	changed sync.Cond
	n       int   // bytes that are there
	ended   bool  // no more will come
	err     error // why not all have come
}

func newArrival(buf []byte) *arrival {
	a := &arrival{buf: buf}
	a.changed.L = &a.mu
	return a
}

// came says that the first n bytes are there.
func (a *arrival) came(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n = max(a.n, n)
	a.changed.Broadcast()
}

// end says that all has come, or why no more will.
func (a *arrival) end(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err = err; err == nil {
		a.n = len(a.buf)
	}
	a.ended = true
	a.changed.Broadcast()
}

// there is how many bytes have come. over says that it stays so, or that they are n.
func (a *arrival) there(n int) (come int, over bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n, a.ended || a.n >= n
}

// wait waits until n bytes have come, and returns how many there are: fewer if the rest does not come.
func (a *arrival) wait(n int) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.n < n && !a.ended {
		a.changed.Wait()
	}
	return a.n
}

// failed is why not all has come.
func (a *arrival) failed() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}
