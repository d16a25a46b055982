package integration

import (
	"testing"
	"time"

	"github.com/erofs-snapshotter/erofs-snapshotter/integration/lab"
)

// TestLazyWalk: what is asked of a layer whose data are missing, but not for data, is answered as fast as by one whose data are here. How
// fast is recorded only: it depends on the machine.
func TestLazyWalk(t *testing.T) {
	const image = "nginx-" + estargzFormat
	s, ref := newLazyBox(t, quietConfig)
	eager := newStory(t, storyTime, remoteOptions(lab.Options{Images: []string{image}, DaemonConfig: "[lazy]\nenabled = false\n"}))
	eagerRef := eager.pull(image)
	eager.startIdle(eagerRef, "box")
	s.exec("box", "find /bin/sh -ls") // what find itself needs is here after that
	eager.exec("box", "find /bin/sh -ls")
	before := s.faults()
	// In turns, so that both meet the same noise. The first walk of each fills the caches of the kernel.
	const walks = 5
	var lazyTook, eagerTook [walks]time.Duration
	for i := range walks {
		lazyTook[i], eagerTook[i] = s.walks("box"), eager.walks("box")
	}
	t.Logf("walks of the tree: %v on demand, %v pulled as a whole; the first: ratio %.2f, the rest: %.2f", lazyTook, eagerTook,
		ratio(lazyTook[:1], eagerTook[:1]), ratio(lazyTook[1:], eagerTook[1:]))
	if n := s.faults() - before; n > walks { // the programs of the walk may ask for something, and its entries must not
		t.Errorf("walks made %d faults", n)
	}
	s.endsWithNothing(ref, "box")
	eager.endsWithNothing(eagerRef, "box")
}

// walks says how long a walk of a container's tree takes that looks at everything but file contents.
func (s *story) walks(container string) time.Duration {
	s.t.Helper()
	began := time.Now()
	s.exec(container, "find / -xdev -ls >/dev/null")
	return time.Since(began)
}

// faults is how often the kernel has asked for data of lazy layers.
func (s *story) faults() (n int64) {
	s.t.Helper()
	status, err := s.status()
	s.must(err)
	for _, l := range status.Layers {
		if l.Lazy != nil {
			n += l.Lazy.Faults
		}
	}
	return n
}

func ratio(a, b []time.Duration) float64 {
	var sumA, sumB time.Duration
	for i := range a {
		sumA, sumB = sumA+a[i], sumB+b[i]
	}
	return float64(sumA) / float64(sumB)
}
