package layerstore

import (
	"runtime"
	"runtime/debug"
	"time"
)

// restTime is how long no layer is made before the memory of making them goes back to the kernel. Pulls come in bursts, and memory is had
// faster from the runtime.
const restTime = 5 * time.Second

// trimLater returns memory after a rest: the runtime alone keeps what conversions took, some 100 MiB, because a process that does nothing
// collects no garbage. It is called with mu held, when the last build has ended.
func (s *Store) trimLater() {
	if s.closed {
		return
	}
	if s.trim == nil {
		s.trim = time.AfterFunc(restTime, s.trimNow)
		return
	}
	s.trim.Reset(restTime)
}

func (s *Store) trimNow() {
	s.mu.Lock()
	resting := len(s.builds) == 0
	s.mu.Unlock()
	if resting {
		runtime.GC() // pools let go of what was not used between two collections
		debug.FreeOSMemory()
	}
}
